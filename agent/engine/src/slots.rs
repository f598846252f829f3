//! Things by the number of their slot. The number of a connection's slot is in the connection ids that this host
//! issues, so that a packet names its connection without a search.

/// Slots at once: connections to every host of a large swarm, and those being made.
const SLOTS_MAX: u16 = 4096;

/// Things by slot.
pub(super) struct Slots<T> {
    slots: Vec<Option<Box<T>>>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(super) fn get(&self, slot: u16) -> Option<&T> {
        self.slots.get(usize::from(slot))?.as_deref()
    }

    pub(super) fn get_mut(&mut self, slot: u16) -> Option<&mut T> {
        self.slots.get_mut(usize::from(slot))?.as_deref_mut()
    }

    /// A free slot.
    pub(super) fn vacant(&self) -> Option<u16> {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        u16::try_from(free).ok().filter(|slot| *slot < SLOTS_MAX)
    }

    /// Puts something into a slot, in place of what was there.
    pub(super) fn put(&mut self, slot: u16, thing: Box<T>) {
        let index = usize::from(slot);
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(thing);
    }

    pub(super) fn take(&mut self, slot: u16) -> Option<Box<T>> {
        self.slots.get_mut(usize::from(slot)).and_then(Option::take)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, thing)| Some((slot as u16, thing.as_deref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(slot, thing)| Some((slot as u16, thing.as_deref_mut()?)))
    }

    /// The slots in use.
    pub(super) fn numbers(&self) -> Vec<u16> {
        self.iter().map(|(slot, _)| slot).collect()
    }
}
