//! What a few switches do together.
