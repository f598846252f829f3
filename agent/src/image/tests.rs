use super::*;
use crate::control::model::Progress;
use manifest::ZEROS;
use proptest::prelude::*;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::watch;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A store and a place for sources.
fn store() -> (TempDir, ImageStore) {
    let tmp = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&tmp.path().join("images")).unwrap();
    (tmp, store)
}

fn reopen(tmp: &TempDir) -> ImageStore {
    ImageStore::open(&tmp.path().join("images")).unwrap()
}

fn import(tmp: &TempDir, store: &ImageStore, text: &str, content: &[u8]) -> Result<StoredImage, ImageError> {
    let path = tmp.path().join(format!("{text}.raw"));
    fs::write(&path, content).unwrap();
    store.import_blocking(&path, &name(text), &mut |_| ControlFlow::Continue(()))
}

/// The content that a VM would see.
fn content(store: &ImageStore, text: &str) -> Vec<u8> {
    let manifest = store.manifest(&name(text)).unwrap();
    let mut content = vec![0; manifest.size_bytes() as usize];
    for (digest, offset, length) in manifest.stored() {
        let chunk = store.chunks.read(digest, length).unwrap();
        content[offset as usize..][..length].copy_from_slice(&chunk);
    }
    content
}

fn verify(store: &ImageStore, text: &str) -> Verification {
    store.verify_blocking(&name(text), &mut |_| ControlFlow::Continue(())).unwrap()
}

fn chunk_files(store: &ImageStore) -> usize {
    let dirs = fs::read_dir(store.dir.join("chunks")).unwrap();
    dirs.map(|dir| fs::read_dir(dir.unwrap().path()).unwrap().count()).sum()
}

/// Chunks of one letter each; `0` is zeros.
fn chunks(letters: &str) -> Vec<u8> {
    letters.bytes().flat_map(|letter| vec![if letter == b'0' { 0 } else { letter }; CHUNK_BYTES]).collect()
}

#[test]
fn images_share_chunks_and_zeros_are_free() {
    let (tmp, store) = store();
    let one = import(&tmp, &store, "one", &chunks("ab00a")).unwrap();
    assert_eq!((one.size_bytes, one.stored_bytes), (5 * CHUNK_BYTES as u64, 3 * CHUNK_BYTES as u64));
    assert_eq!(chunk_files(&store), 2);
    import(&tmp, &store, "two", &[chunks("bc"), vec![7; 5]].concat()).unwrap();
    assert_eq!(chunk_files(&store), 4);
    assert_eq!(content(&store, "one"), chunks("ab00a"));

    store.remove_blocking(&name("one")).unwrap();
    assert_eq!(chunk_files(&store), 3);
    assert!(verify(&store, "two").ok);
    assert!(matches!(store.remove_blocking(&name("one")), Err(ImageError::NotFound(_))));
    drop(store);
    assert_eq!(reopen(&tmp).list().len(), 1);
}

#[test]
fn names() {
    let (tmp, store) = store();
    let one = import(&tmp, &store, "one", &chunks("a")).unwrap();
    assert_eq!(import(&tmp, &store, "one", &chunks("a")).unwrap(), one);
    assert!(matches!(import(&tmp, &store, "one", &chunks("b")), Err(ImageError::NameTaken(_))));
    assert_eq!(chunk_files(&store), 1);
    // A second name for the same content keeps it when the first goes.
    assert_eq!(import(&tmp, &store, "same", &chunks("a")).unwrap().digest, one.digest);
    store.remove_blocking(&name("one")).unwrap();
    assert_eq!(content(&store, "same"), chunks("a"));
}

#[test]
fn damage_is_found_named_and_mended_by_an_import() {
    let (tmp, store) = store();
    import(&tmp, &store, "one", &chunks("abc")).unwrap();
    let b = chunk::digest(&chunks("b"));
    for damage in ["shorter", "missing", "other"] {
        match damage {
            "shorter" => fs::write(store.chunks.path(b), b"bb").unwrap(),
            "missing" => fs::remove_file(store.chunks.path(b)).unwrap(),
            _ => fs::write(store.chunks.path(b), chunks("x")).unwrap(),
        }
        let found = verify(&store, "one");
        assert_eq!((found.ok, found.chunks_checked, found.chunks_damaged), (false, 3, 1), "{damage}");
        assert_eq!((found.damaged[0].offset_bytes, found.damaged[0].digest.0), (CHUNK_BYTES as u64, b));
        import(&tmp, &store, "one", &chunks("abc")).unwrap();
        assert!(verify(&store, "one").ok, "{damage}");
    }
}

#[test]
fn a_damaged_manifest_costs_no_chunk() {
    let (tmp, store) = store();
    let one = import(&tmp, &store, "one", &chunks("ab")).unwrap();
    import(&tmp, &store, "two", &chunks("c")).unwrap();
    let path = store.manifest_path(one.digest);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..40]).unwrap();
    drop(store);
    let store = reopen(&tmp);
    assert!(store.get(&name("one")).unwrap().damaged);
    assert!(matches!(
        store.verify_blocking(&name("one"), &mut |_| ControlFlow::Continue(())),
        Err(ImageError::Damaged { .. })
    ));
    store.remove_blocking(&name("two")).unwrap();
    assert_eq!(chunk_files(&store), 3);
    fs::write(&path, whole).unwrap();
    drop(store);
    let store = reopen(&tmp);
    assert_eq!(content(&store, "one"), chunks("ab"));
    assert_eq!(chunk_files(&store), 2);
}

#[test]
fn damaged_names_are_kept() {
    let (tmp, store) = store();
    import(&tmp, &store, "one", &chunks("a")).unwrap();
    drop(store);
    let path = tmp.path().join("images/names.json");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(ImageStore::open(&tmp.path().join("images")).unwrap_err().is::<sealed::Unreadable>());
    fs::write(&path, whole).unwrap();
    assert_eq!(content(&reopen(&tmp), "one"), chunks("a"));
}

#[test]
fn wrong_sources_are_refused() {
    let (tmp, store) = store();
    let refused = |path: &Path| {
        let error = store.import_blocking(path, &name("x"), &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, ImageError::Source { .. }), "{error}");
        assert_eq!(fs::read_dir(store.dir.join("tmp")).unwrap().count(), 0);
        error.to_string()
    };
    fs::write(tmp.path().join("empty"), b"").unwrap();
    assert!(refused(&tmp.path().join("empty")).contains("empty"));
    assert!(refused(tmp.path()).contains("neither a file"));
    assert!(refused(Path::new("/dev/zero")).contains("neither a file"));
    refused(&tmp.path().join("missing"));
    // A sparse file needs no space, but has a bound.
    let huge = fs::File::create(tmp.path().join("huge")).unwrap();
    if huge.set_len(manifest::IMAGE_BYTES_MAX + 1).is_ok() {
        assert!(refused(&tmp.path().join("huge")).contains("larger"));
    }
}

#[test]
fn a_source_that_changes_is_refused() {
    let (tmp, store) = store();
    let path = tmp.path().join("disk.raw");
    fs::write(&path, chunks("abc")).unwrap();
    let mut write = |_: Progress| {
        fs::OpenOptions::new().append(true).open(&path).unwrap().set_len(7).unwrap();
        ControlFlow::Continue(())
    };
    let error = store.import_blocking(&path, &name("x"), &mut write).unwrap_err().to_string();
    assert!(error.contains("while it was read"), "{error}");
}

#[test]
fn cancelling_leaves_the_store_as_it_was() {
    let (tmp, store) = store();
    import(&tmp, &store, "one", &chunks("a")).unwrap();
    let path = tmp.path().join("two.raw");
    fs::write(&path, chunks("bcdb")).unwrap();
    for steps in 0..20 {
        let mut left = steps;
        let mut on_step = |_| {
            left -= 1;
            if left < 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        match store.import_blocking(&path, &name("two"), &mut on_step) {
            Ok(_) => return assert!(steps > 4 + 3, "{steps}"),
            Err(error) => assert!(matches!(error, ImageError::Cancelled), "{error}"),
        }
        assert_eq!((store.list().len(), chunk_files(&store)), (1, 1), "{steps}");
        assert_eq!(fs::read_dir(store.dir.join("tmp")).unwrap().count(), 0);
    }
    panic!("the import ends in fewer steps");
}

/// A panic in a step stops the import where a crash would: nothing is cleaned up.
#[test]
fn a_crash_at_any_step_leaves_a_usable_store() {
    let (tmp, store) = store();
    import(&tmp, &store, "one", &chunks("ab0")).unwrap();
    drop(store);
    let path = tmp.path().join("two.raw");
    fs::write(&path, [chunks("bcd0c"), vec![1; 9]].concat()).unwrap();
    for steps in 0..30 {
        let store = reopen(&tmp);
        let mut left = steps;
        let mut on_step = |_| {
            left -= 1;
            assert!(left >= 0);
            ControlFlow::Continue(())
        };
        let crashed =
            catch_unwind(AssertUnwindSafe(|| store.import_blocking(&path, &name("two"), &mut on_step))).is_err();
        drop(store);
        let store = reopen(&tmp);
        assert_eq!(content(&store, "one"), chunks("ab0"), "{steps}");
        assert_eq!(fs::read_dir(store.dir.join("tmp")).unwrap().count(), 0);
        if !crashed {
            assert_eq!(content(&store, "two"), [chunks("bcd0c"), vec![1; 9]].concat());
            return assert!(steps > 6 + 4, "{steps}");
        }
        assert_eq!((store.list().len(), chunk_files(&store)), (1, 2), "{steps}");
    }
    panic!("the import ends in fewer steps");
}

#[tokio::test]
async fn a_dropped_import_is_cancelled_and_progress_is_told() {
    let (tmp, store) = store();
    let store = Arc::new(store);
    let path = tmp.path().join("x.raw");
    fs::write(&path, chunks("abcdefgh")).unwrap();
    let (sender, progress) = watch::channel(Progress::default());
    store.import(path.clone(), name("x"), sender).await.unwrap();
    assert_eq!(progress.borrow().done_bytes, 8 * CHUNK_BYTES as u64);
    assert!(store.verify(name("x"), watch::channel(Progress::default()).0).await.unwrap().ok);
    store.remove(name("x")).await.unwrap();

    let (sender, mut progress) = watch::channel(Progress::default());
    let import = store.import(path, name("x"), sender);
    // Once it has begun, it is dropped.
    tokio::select! {
        biased;
        _ = progress.changed() => {}
        _ = import => {}
    }
    // The sender goes when the work has ended, cancelled or done.
    while progress.changed().await.is_ok() {}
    assert!(store.list().len() <= 1);
    assert_eq!(fs::read_dir(store.dir.join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_sweep_waits_for_imports() {
    let (tmp, store) = store();
    import(&tmp, &store, "old", &chunks("ab")).unwrap();
    let path = tmp.path().join("new.raw");
    fs::write(&path, chunks("abc")).unwrap();
    let mut removed = false;
    let mut on_step = |_| {
        // The old image goes after the new one has found its chunks in the store.
        if !std::mem::replace(&mut removed, true) {
            store.remove_blocking(&name("old")).unwrap();
        }
        ControlFlow::Continue(())
    };
    store.import_blocking(&path, &name("new"), &mut on_step).unwrap();
    assert_eq!(content(&store, "new"), chunks("abc"));
    assert_eq!(chunk_files(&store), 3);
    assert!(!store.manifest_path(store.manifest(&name("new")).unwrap().digest()).as_os_str().is_empty());
    assert_eq!(fs::read_dir(store.dir.join("manifests")).unwrap().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_content_comes_back(letters in "[ab0]{0,4}", tail in proptest::collection::vec(any::<u8>(), 0..50)) {
        let (tmp, store) = store();
        let whole = [chunks(&letters), tail].concat();
        match import(&tmp, &store, "x", &whole) {
            Ok(image) => {
                prop_assert_eq!(image.size_bytes, whole.len() as u64);
                prop_assert_eq!(content(&store, "x"), whole);
                prop_assert!(verify(&store, "x").ok);
                prop_assert!(!store.chunks.path(ZEROS).exists());
            }
            Err(error) => prop_assert!(whole.is_empty(), "{}", error),
        }
    }
}

#[test]
fn an_export_is_the_file_that_was_imported() {
    let (tmp, store) = store();
    import(&tmp, &store, "one", &chunks("a00b")).unwrap();
    import(&tmp, &store, "two", &chunks("a00c")).unwrap();
    let path = tmp.path().join("out.raw");
    let export = |path: &Path| store.export_blocking(&name("one"), path, &mut |_| ControlFlow::Continue(()));
    export(&path).unwrap();
    assert!(fs::read(&path).unwrap() == chunks("a00b"));
    let refused = export(&path).unwrap_err().to_string();
    assert!(refused.contains("out.raw") && refused.contains("exists"), "{refused}");
    assert_eq!(store.unique_bytes(&name("one")).unwrap(), CHUNK_BYTES as u64);

    let (digest, ..) = store.manifest(&name("one")).unwrap().stored().next().unwrap();
    fs::write(store.chunks.path(digest), b"x").unwrap();
    let other = tmp.path().join("other.raw");
    assert!(matches!(export(&other), Err(ImageError::Damaged { .. })));
    assert!(!other.exists());
}

#[test]
fn qcow2_becomes_raw_and_one_that_leads_elsewhere_is_refused() {
    let (tmp, store) = store();
    let (raw, qcow2) = (tmp.path().join("disk.raw"), tmp.path().join("disk.qcow2"));
    fs::write(&raw, chunks("a00b")).unwrap();
    let mut convert = std::process::Command::new("qemu-img");
    convert.args(["convert", "-c", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&qcow2);
    let Ok(converted) = convert.output() else {
        return eprintln!("skipped: qemu-img is not installed (package qemu-utils)");
    };
    assert!(converted.status.success(), "{converted:?}");
    store.import_blocking(&qcow2, &name("disk"), &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(content(&store, "disk") == chunks("a00b"));
    assert_eq!(fs::read_dir(store.dir.join("tmp")).unwrap().count(), 0);

    let mut header = fs::read(&qcow2).unwrap();
    header[15] = 1;
    fs::write(&qcow2, &header).unwrap();
    let refused = store.import_blocking(&qcow2, &name("evil"), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(refused.to_string().contains("backing file"), "{refused}");
}

#[test]
fn compressed_files_are_unpacked() {
    let (tmp, store) = store();
    let raw = tmp.path().join("disk.raw");
    fs::write(&raw, [chunks("a00b"), vec![7; 9]].concat()).unwrap();
    for (tool, ending) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        let Ok(packed) = std::process::Command::new(tool).args(["-kc"]).arg(&raw).output() else {
            eprintln!("skipped: {tool} is not installed");
            continue;
        };
        let path = tmp.path().join(format!("disk.{ending}"));
        fs::write(&path, &packed.stdout).unwrap();
        store.import_blocking(&path, &name(ending), &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(content(&store, ending) == [chunks("a00b"), vec![7; 9]].concat());
        fs::write(&path, &packed.stdout[..packed.stdout.len() / 2]).unwrap();
        let torn = store.import_blocking(&path, &name("torn"), &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(torn.to_string().contains(&format!("disk.{ending}: `{tool}` can't unpack it")), "{torn}");
        assert_eq!(fs::read_dir(store.dir.join("tmp")).unwrap().count(), 0);
    }
}

#[test]
fn an_import_that_is_more_than_the_owner_lends_leaves_nothing() {
    let (tmp, store) = store();
    import(&tmp, &store, "one", &chunks("ab")).unwrap();
    store.set_limit(Some(3 * CHUNK_BYTES as u64));
    let error = import(&tmp, &store, "two", &chunks("abcd")).unwrap_err();
    assert!(matches!(error, ImageError::Quota { needed_bytes, .. } if needed_bytes == 2 * CHUNK_BYTES as u64));
    assert!(error.to_string().contains("limits.disk"), "{error}");
    assert_eq!((store.list().len(), chunk_files(&store)), (1, 2));
    assert_eq!(fs::read_dir(store.dir.join("tmp")).unwrap().count(), 0);
    // What is here already costs nothing.
    import(&tmp, &store, "three", &chunks("abc")).unwrap();
}
