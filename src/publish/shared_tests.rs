//! Tests of versions in an object store: kept, fetched, damaged, removed.

use super::tests::{publish, store, versions};
use super::*;
use crate::error::Code;

/// A store whose versions are also in another folder, as in a bucket.
fn shared() -> (tempfile::TempDir, tempfile::TempDir, VersionStore) {
    let ((dir, store), bucket) = (store(), tempfile::tempdir().unwrap());
    let url = format!("file://{}/prefix", bucket.path().display());
    (dir, bucket, store.keep_also_in(&url, |_| Ok(None)).unwrap())
}

/// Another machine with the same object store.
fn another(bucket: &tempfile::TempDir) -> (tempfile::TempDir, VersionStore) {
    let (dir, store) = store();
    (dir, store.keep_also_in(&format!("file://{}/prefix", bucket.path().display()), |_| Ok(None)).unwrap())
}

fn objects(bucket: &tempfile::TempDir, version: &str) -> Vec<PathBuf> {
    let folder = bucket.path().join("prefix/versions").join(version);
    fs::read_dir(folder).map(|all| all.map(|one| one.unwrap().path()).collect()).unwrap_or_default()
}

#[test]
fn another_machine_fetches_what_was_committed_here() {
    let (dir, bucket, here) = shared();
    publish(&here, 3);
    let [object] = &objects(&bucket, "000003")[..] else { panic!("expected one file") };
    let sum = sha256_file(object).unwrap().sha256;
    assert_eq!(object.file_name().unwrap().to_str().unwrap(), format!("{sum}.tar"));
    assert_eq!(here.list().unwrap(), versions(&[3]), "nothing is left beside it");

    let (_dir, there) = another(&bucket);
    there.obtain(PolicyVersion(3)).unwrap();
    assert_eq!(there.verify(PolicyVersion(3)).unwrap().files, here.verify(PolicyVersion(3)).unwrap().files);
    there.obtain(PolicyVersion(3)).unwrap();
    there.obtain(PolicyVersion::INITIAL).unwrap();
    assert_eq!(there.list().unwrap(), versions(&[3]));
    assert_eq!(objects(&bucket, "000003").len(), 1, "what was fetched isn't written again");
    assert_eq!(there.obtain(PolicyVersion(4)).unwrap_err().code(), Code::Arg);

    // A version that is gone here comes back, even if the whole folder is.
    fs::remove_dir_all(dir.path().join("versions")).unwrap();
    here.obtain(PolicyVersion(3)).unwrap();
    here.verify(PolicyVersion(3)).unwrap();
    assert!(fs::read_dir(dir.path().join("versions")).unwrap().count() == 1);
}

#[test]
fn many_threads_fetch_a_version_once() {
    let (_dir, bucket, here) = shared();
    publish(&here, 1);
    let (_dir, there) = another(&bucket);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| there.obtain(PolicyVersion(1)).unwrap());
        }
    });
    there.verify(PolicyVersion(1)).unwrap();
}

#[test]
fn what_is_not_what_its_name_says_is_refused_and_leaves_nothing() {
    let (_dir, bucket, here) = shared();
    publish(&here, 1);
    publish(&here, 2);
    let (_dir, there) = another(&bucket);
    let refused = |version, why: &str| {
        let error = there.obtain(PolicyVersion(version)).unwrap_err();
        assert!(error.code() == Code::Io && error.message().contains(why), "{error}");
        assert_eq!(there.list().unwrap(), versions(&[]));
    };
    let (one, two) = (objects(&bucket, "000001").remove(0), objects(&bucket, "000002").remove(0));
    let whole = fs::read(&one).unwrap();
    fs::write(&one, &whole[..whole.len() - 1]).unwrap();
    refused(1, "damaged");
    fs::write(&one, &whole).unwrap();
    // Another version's file, whole.
    fs::remove_file(&two).unwrap();
    fs::copy(&one, two.parent().unwrap().join(one.file_name().unwrap())).unwrap();
    refused(2, "version 2 of the object store is 1");
    fs::write(one.parent().unwrap().join("another.tar"), "x").unwrap();
    refused(1, "several");
}

#[test]
fn a_version_that_the_store_does_not_take_is_not_committed() {
    let (_dir, bucket, here) = shared();
    fs::write(bucket.path().join("prefix"), "a file where the folder should be").unwrap();
    let stage = here.stage(PolicyVersion(1)).unwrap();
    fs::write(stage.path().join("adapter.gguf"), "weights").unwrap();
    let manifest = super::tests::about();
    assert_eq!(stage.commit(manifest).unwrap_err().code(), Code::Io);
    assert_eq!(here.list().unwrap(), versions(&[]));
    fs::remove_file(bucket.path().join("prefix")).unwrap();
    publish(&here, 1);
    assert_eq!(objects(&bucket, "000001").len(), 1);
}

#[test]
fn of_two_versions_of_one_number_the_one_on_record_is_served() {
    let (_dir, bucket, here) = shared();
    publish(&here, 1);
    // The first was made by a server that lost the right to, or was killed before it was on record.
    fs::remove_dir_all(here.path(PolicyVersion(1))).unwrap();
    let about = About { created: super::tests::about().created + 1, ..super::tests::about() };
    let stage = here.stage(PolicyVersion(1)).unwrap();
    fs::write(stage.path().join("adapter.gguf"), "others").unwrap();
    stage.commit(about.clone()).unwrap();
    assert_eq!(objects(&bucket, "000001").len(), 2);
    let url = format!("file://{}/prefix", bucket.path().display());
    for (made, expected) in [(about.created, "others"), (about.created - 1, "weights of 1")] {
        let (_dir, there) = store();
        // What is here already and is not meant is no more served than what is there.
        fs::create_dir(there.path(PolicyVersion(1))).unwrap();
        let from = here.path(PolicyVersion(1)).join(MANIFEST);
        fs::copy(from, there.path(PolicyVersion(1)).join(MANIFEST)).unwrap();
        if made == about.created {
            fs::remove_dir_all(there.path(PolicyVersion(1))).unwrap();
        }
        let there = there.keep_also_in(&url, move |_| Ok(Some(made))).unwrap();
        there.obtain(PolicyVersion(1)).unwrap();
        assert_eq!(fs::read_to_string(there.path(PolicyVersion(1)).join("adapter.gguf")).unwrap(), expected);
    }
    let (_dir, there) = store();
    let there = there.keep_also_in(&url, |_| Ok(Some(7))).unwrap();
    let error = there.obtain(PolicyVersion(1)).unwrap_err();
    assert!(error.message().contains("has no version 1"), "{error}");
    assert_eq!(there.list().unwrap(), versions(&[]));

    // What could not be recorded is taken back, and nothing else of its number.
    here.withdraw(PolicyVersion(1)).unwrap();
    assert_eq!((objects(&bucket, "000001").len(), here.list().unwrap()), (1, versions(&[])));
    here.obtain(PolicyVersion(1)).unwrap();
    here.withdraw(PolicyVersion(1)).unwrap();
    assert_eq!(objects(&bucket, "000001").len(), 1, "it was written by another");
}

#[test]
fn a_discarded_version_is_gone_from_the_store_too() {
    let (_dir, bucket, here) = shared();
    publish(&here, 1);
    publish(&here, 2);
    here.prune(1, &[]).unwrap();
    assert_eq!(objects(&bucket, "000001").len(), 1, "what is only old stays there");
    here.discard(PolicyVersion(1)).unwrap();
    here.discard(PolicyVersion(2)).unwrap();
    assert_eq!((objects(&bucket, "000001").len(), objects(&bucket, "000002").len()), (0, 0));
    assert_eq!(here.list().unwrap(), versions(&[]));
}

#[test]
fn a_url_that_is_none_is_told_without_its_password() {
    for url in ["", "no url", "ftp://host/x", "s3://", "s3://user:secret@bucket/x"] {
        let error = store().1.keep_also_in(url, |_| Ok(None)).unwrap_err();
        assert!(error.code() == Code::Arg && error.message().contains("s3://BUCKET/PATH"), "{url}: {error}");
        assert!(!error.message().contains("secret"), "{error}");
    }
}
