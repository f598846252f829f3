//! What goes wrong.

use crate::rng::Rng;

/// Something that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A message in flight is lost.
    Lose,
    /// A message in flight is doubled.
    Double,
    /// The streams between the hosts break; they are made again later.
    Break,
    /// An agent dies; its VM lives on.
    KillAgent(Side),
    /// A host dies and comes back.
    KillHost(Side),
    /// A host dies for ever.
    Bury(Side),
    /// The VM's process dies.
    KillQemu(Side),
    /// The next write of a record fails.
    FailWrite(Side),
    /// The operator cancels.
    Cancel,
    /// Nothing happens for some seconds.
    Wait,
}

/// One of the two hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The one that has the VM.
    Source,
    /// The one that gets it.
    Target,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Lose,
        Self::Double,
        Self::Break,
        Self::KillAgent(Side::Source),
        Self::KillAgent(Side::Target),
        Self::KillHost(Side::Source),
        Self::KillHost(Side::Target),
        Self::Bury(Side::Source),
        Self::Bury(Side::Target),
        Self::KillQemu(Side::Source),
        Self::KillQemu(Side::Target),
        Self::FailWrite(Side::Source),
        Self::FailWrite(Side::Target),
        Self::Cancel,
        Self::Wait,
    ];

    /// One of them, rare ones rarely.
    pub fn draw(rng: &mut Rng) -> Self {
        let fault = Self::ALL[rng.index(Self::ALL.len())];
        match fault {
            // They end most migrations, and so hide what would come later.
            Self::Bury(side) | Self::KillQemu(side) | Self::KillHost(side) if rng.chance(700_000) => {
                Self::KillAgent(side)
            }
            other => other,
        }
    }
}
