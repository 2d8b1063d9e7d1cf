//! Issues handles and looks up their objects. Never follows a handle as a pointer.

use std::collections::BTreeMap;
use std::ptr;

use crate::error::{Error, Result};
use crate::lock::unpoisoned;

// tests/loom runs this file under every order of its threads.
#[cfg(loom)]
use loom::sync::{
    Arc, RwLock,
    atomic::{AtomicUsize, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    Arc, RwLock,
    atomic::{AtomicUsize, Ordering},
};

/// High bits of every handle. On 64-bit machines no address has them: dereferencing a handle faults, and no pointer of
/// another allocator is ever mistaken for one.
const BASE: usize = (0xA9A_u64 << 52) as usize;
/// Bits that hold the type.
const TAG_BITS: u32 = 3;
/// The last serial number. None is used twice, so that an old handle never names a new object.
const LAST: usize = (usize::MAX >> 12) >> TAG_BITS;

/// Starts so that no handle is below 4096: Go refuses such pointers on its stacks.
const FIRST: usize = 1024;
/// The next serial number.
#[cfg(not(loom))]
static NEXT: AtomicUsize = AtomicUsize::new(FIRST);
#[cfg(loom)]
loom::lazy_static! {
    static ref NEXT: AtomicUsize = AtomicUsize::new(FIRST);
}

/// A type of handle. Implemented by the opaque structs of the header.
pub(super) trait Handle: Sized + 'static {
    /// The object behind a handle.
    type Object: Send + Sync;
    /// Number of the type; below `1 << TAG_BITS`.
    const TAG: usize;
    /// Its name in C.
    const NAME: &'static str;
    /// The registry that holds its objects.
    fn registry() -> &'static Registry<Self::Object>;
}

/// The live objects of one type.
pub(super) struct Registry<T>(RwLock<BTreeMap<usize, Arc<T>>>);

impl<T> Registry<T> {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }
    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }
}

/// Stores an object and returns its handle.
pub(super) fn insert<H: Handle>(object: H::Object) -> Result<*mut H> {
    let serial = NEXT.fetch_add(1, Ordering::Relaxed);
    if serial > LAST {
        NEXT.store(LAST, Ordering::Relaxed);
        return Err(Error::nomem("all handles of this process have been used up"));
    }
    let key = BASE | (serial << TAG_BITS) | H::TAG;
    let mut objects = unpoisoned(H::registry().0.write());
    objects.insert(key, Arc::new(object));
    Ok(ptr::without_provenance_mut(key))
}

/// The object of a handle; it stays alive while in use, even if the handle is freed meanwhile.
pub(super) fn get<H: Handle>(handle: *const H) -> Result<Arc<H::Object>> {
    let objects = unpoisoned(H::registry().0.read());
    objects.get(&handle.addr()).cloned().ok_or_else(|| not_live::<H>(handle.addr()))
}

/// Removes a handle. `None` for NULL, for a handle that was removed before, and for what never was one.
pub(super) fn remove<H: Handle>(handle: *const H) -> Option<Arc<H::Object>> {
    let mut objects = unpoisoned(H::registry().0.write());
    objects.remove(&handle.addr())
}

fn not_live<H: Handle>(key: usize) -> Error {
    let serial = (key ^ BASE) >> TAG_BITS;
    if key == 0 {
        Error::arg(format!("the handle is NULL, expected an {}", H::NAME))
    } else if !(FIRST..NEXT.load(Ordering::Relaxed)).contains(&serial) {
        Error::arg(format!("the pointer is not a handle of this library, expected an {}", H::NAME))
    } else if key & ((1 << TAG_BITS) - 1) != H::TAG {
        Error::arg(format!("the handle is of another type, expected an {}", H::NAME))
    } else {
        Error::closed(format!("the {} has been freed", H::NAME))
    }
}

/// Makes a handle of an opaque struct of the header.
macro_rules! handle {
    ($name:ident, $tag:literal, $object:ty) => {
        impl crate::ffi::registry::Handle for $name {
            type Object = $object;
            const TAG: usize = $tag;
            const NAME: &'static str = stringify!($name);
            fn registry() -> &'static crate::ffi::registry::Registry<$object> {
                #[cfg(not(loom))]
                static LIVE: crate::ffi::registry::Registry<$object> = crate::ffi::registry::Registry::new();
                #[cfg(loom)]
                loom::lazy_static! {
                    static ref LIVE: crate::ffi::registry::Registry<$object> = crate::ffi::registry::Registry::new();
                }
                &LIVE
            }
        }
    };
}
pub(super) use handle;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::error::Code;

    struct thing;
    struct other;
    handle!(thing, 6, u32);
    handle!(other, 7, u32);

    #[test]
    fn a_handle_finds_its_object_until_it_is_freed() {
        let handle = insert::<thing>(7).unwrap();
        assert_eq!(*get(handle).unwrap(), 7);
        let kept = get(handle).unwrap();
        assert!(remove(handle).is_some() && remove(handle).is_none());
        assert_eq!((*kept, get(handle).unwrap_err().code()), (7, Code::Closed));
        let again = insert::<thing>(8).unwrap();
        assert_ne!(again, handle);
    }

    #[test]
    fn what_is_no_handle_is_told_apart_from_what_was_one() {
        let handle = insert::<thing>(7).unwrap();
        let message = |p: *const other| get(p).unwrap_err().message().to_owned();
        assert_eq!(message(ptr::null()), "the handle is NULL, expected an other");
        assert_eq!(message(handle.cast()), "the handle is of another type, expected an other");
        let local = 0u64;
        assert!(message((&raw const local).cast()).contains("not a handle of this library"));
        assert!(message(ptr::without_provenance(usize::MAX)).contains("not a handle of this library"));
        assert!(remove::<other>(handle.cast()).is_none() && get(handle).is_ok());
    }
}
