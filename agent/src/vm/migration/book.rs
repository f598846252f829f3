//! What this host must not forget about migrations: one small file for each.

use crate::state::sealed::{self, Kind};
use anyhow::Context;
use std::fs;
use std::path::PathBuf;
use virtuoso_overlay::migrate::{MigrationId, Record};

const RECORD: Kind = Kind { name: "migration", version: 1 };
/// Migrations whose other host has not confirmed their end yet. Beyond that something is wrong with all of them.
const RECORDS_MAX: usize = 1_024;

/// The directory of records.
#[derive(Clone, Debug)]
pub(super) struct Book(PathBuf);

impl Book {
    /// Opens or creates it.
    pub(super) fn open(dir: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("Can't create {}", dir.display()))?;
        Ok(Self(dir))
    }

    fn path(&self, id: MigrationId) -> PathBuf {
        self.0.join(super::hex(id))
    }

    /// All records. One that can't be read is told and left alone.
    pub(super) fn load(&self) -> anyhow::Result<Vec<Record>> {
        let entries = fs::read_dir(&self.0).with_context(|| format!("Can't list {}", self.0.display()))?;
        let mut records = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()).take(2 * RECORDS_MAX) {
            // What a record might have become.
            if path.extension().is_some() {
                continue;
            }
            let read = sealed::read(&path, &RECORD).and_then(|content| {
                let content = content.context("It is gone")?;
                Record::decode(&content).with_context(|| format!("Can't understand {}", path.display()))
            });
            match read {
                Ok(record) => records.push(record),
                Err(error) => tracing::warn!("A migration is left alone: {error:#}"),
            }
        }
        Ok(records)
    }

    /// Writes down what a record will become, so that [`Self::write`] is quick then.
    pub(super) fn stage(&self, record: &Record) -> anyhow::Result<()> {
        sealed::stage(&self.path(record.id), &RECORD, &record.encode())
    }

    /// Writes a record, whole and for good.
    pub(super) fn write(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.path(record.id);
        if sealed::replace(&path, &RECORD, &record.encode())? {
            return Ok(());
        }
        let count = fs::read_dir(&self.0).map(Iterator::count).unwrap_or_default();
        anyhow::ensure!(count < RECORDS_MAX || path.exists(), "{RECORDS_MAX} migrations wait for their other host");
        sealed::write(&path, &RECORD, &record.encode())
    }

    /// Removes a record.
    pub(super) fn remove(&self, id: MigrationId) {
        let path = self.path(id);
        for path in [sealed::staged(&path), path] {
            if path.exists()
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!("Can't remove {}: {error}", path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtuoso_overlay::ids::{HostId, VmId};
    use virtuoso_overlay::migrate::Phase;

    #[test]
    fn records_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path().join("migrations")).unwrap();
        let id = MigrationId([7; 16]);
        let record = |phase| Record { id, vm: VmId([1; 16]), peer: HostId([2; 32]), phase };
        book.write(&record(Phase::Trying)).unwrap();
        book.write(&record(Phase::Given)).unwrap();
        assert_eq!(book.load().unwrap(), [record(Phase::Given)]);
        book.stage(&record(Phase::Taken)).unwrap();
        assert_eq!(book.load().unwrap(), [record(Phase::Given)], "what is staged is not written");
        book.write(&record(Phase::Aborted)).unwrap();
        assert_eq!(book.load().unwrap(), [record(Phase::Aborted)], "another thing was staged");
        book.write(&record(Phase::Taken)).unwrap();
        assert_eq!(book.load().unwrap(), [record(Phase::Taken)]);
        book.stage(&record(Phase::Given)).unwrap();
        book.remove(id);
        assert_eq!(fs::read_dir(&book.0).unwrap().count(), 0);
        assert!(book.load().unwrap().is_empty());
    }
}
