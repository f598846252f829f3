//! One value for each image, made when it is first wanted and shared until its last user has gone.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::OnceCell;
use virtuoso_overlay::ids::Digest;

/// The values that are in use.
pub(super) struct PerImage<T>(Mutex<BTreeMap<Digest, Weak<OnceCell<T>>>>);

/// A use of an image's value. The last one's end is the value's.
pub struct InUse<T>(Arc<OnceCell<T>>);

impl<T> PerImage<T> {
    /// The value of `image`. Of those who come while it is made, one makes it and the others wait.
    pub(super) async fn get<E>(&self, image: Digest, make: impl Future<Output = Result<T, E>>) -> Result<InUse<T>, E> {
        let cell = self.cell(image);
        cell.get_or_try_init(|| make).await?;
        Ok(InUse(cell))
    }

    /// Whether there is a value of `image`, or one is being made.
    pub(super) fn has(&self, image: Digest) -> bool {
        let cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.get(&image).is_some_and(|cell| cell.strong_count() > 0)
    }

    /// Looks at all values that are there.
    pub(super) fn map<R>(&self, look: impl Fn(&T) -> R) -> Vec<R> {
        let cells: Vec<_> = {
            let cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            cells.values().filter_map(Weak::upgrade).collect()
        };
        // Outside the lock: one of these may be the last use of its value.
        cells.iter().filter_map(|cell| cell.get()).map(look).collect()
    }

    fn cell(&self, image: Digest) -> Arc<OnceCell<T>> {
        // Each change is complete before the lock is released.
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.retain(|_, cell| cell.strong_count() > 0);
        if let Some(cell) = cells.get(&image).and_then(Weak::upgrade) {
            return cell;
        }
        let cell = Arc::new(OnceCell::new());
        cells.insert(image, Arc::downgrade(&cell));
        cell
    }
}

impl<T> Default for PerImage<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> fmt::Debug for PerImage<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerImage").finish_non_exhaustive()
    }
}

impl<T> Deref for InUse<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.get().expect("it was made before anybody could use it")
    }
}

impl<T> Clone for InUse<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for InUse<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const IMAGE: Digest = Digest([7; 32]);

    #[tokio::test]
    async fn a_value_is_made_once_and_goes_with_its_last_user() {
        let values = PerImage::default();
        let make = |n: u32| async move { Ok::<_, Infallible>(Arc::new(n)) };
        let (first, second) = tokio::join!(values.get(IMAGE, make(1)), values.get(IMAGE, make(2)));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!((**first, **second), (1, 1));
        let value = Arc::downgrade(&first);
        drop(first);
        assert!(value.upgrade().is_some() && values.has(IMAGE));
        drop(second);
        assert!(value.upgrade().is_none() && !values.has(IMAGE));
        assert_eq!(**values.get(IMAGE, make(3)).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn who_waits_makes_it_when_the_first_one_can_not() {
        let values = PerImage::default();
        let fail = async { Err("no") };
        let make = async { Ok::<_, &str>(2) };
        let (first, second) = tokio::join!(values.get(IMAGE, fail), values.get(IMAGE, make));
        assert_eq!(first.unwrap_err(), "no");
        assert_eq!(*second.unwrap(), 2);
    }
}
