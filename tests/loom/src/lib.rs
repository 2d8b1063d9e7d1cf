//! The registry of handles under every order in which threads can run it.
#![cfg(all(loom, test))]
#![allow(non_camel_case_types)]

mod error {
    #[derive(Debug, PartialEq)]
    pub enum Error {
        Arg(String),
        Closed(String),
        NoMem(String),
    }
    impl Error {
        pub fn arg(message: impl Into<String>) -> Self {
            Self::Arg(message.into())
        }
        pub fn closed(message: impl Into<String>) -> Self {
            Self::Closed(message.into())
        }
        pub fn nomem(message: impl Into<String>) -> Self {
            Self::NoMem(message.into())
        }
    }
    pub type Result<T> = std::result::Result<T, Error>;
}

#[path = "../../../src/lock.rs"]
#[allow(dead_code)]
mod lock;

#[path = "."]
mod ffi {
    #[path = "../../../src/ffi/registry.rs"]
    pub mod registry;

    mod tests {
        use super::registry::{self, handle};
        use crate::error::Error;
        use loom::cell::UnsafeCell;
        use loom::thread;

        struct thing;
        handle!(thing, 6, Object);

        /// Written once it is freed and nobody uses it: loom sees a read that comes together with that.
        struct Object(UnsafeCell<u32>);
        // SAFETY: what the tests show.
        unsafe impl Send for Object {}
        unsafe impl Sync for Object {}

        impl Drop for Object {
            fn drop(&mut self) {
                self.0.with_mut(|value| unsafe { *value = 0 });
            }
        }

        fn read(handle: *mut thing) -> Option<u32> {
            match registry::get(handle) {
                Ok(object) => Some(object.0.with(|value| unsafe { *value })),
                Err(error) => {
                    assert!(matches!(error, Error::Closed(_)), "{error:?}");
                    None
                }
            }
        }

        fn insert(value: u32) -> usize {
            registry::insert::<thing>(Object(UnsafeCell::new(value))).unwrap().addr()
        }

        fn of(key: usize) -> *mut thing {
            std::ptr::without_provenance_mut(key)
        }

        #[test]
        fn a_use_beside_a_free_gets_the_object_or_closed() {
            loom::model(|| {
                let key = insert(7);
                let user = thread::spawn(move || read(of(key)));
                assert!(registry::remove(of(key).cast_const()).is_some());
                assert!(matches!(user.join().unwrap(), None | Some(7)));
                assert_eq!(read(of(key)), None);
            });
        }

        #[test]
        fn of_two_frees_one_gets_the_object() {
            loom::model(|| {
                let key = insert(7);
                let other = thread::spawn(move || registry::remove(of(key).cast_const()).is_some());
                let mine = registry::remove(of(key).cast_const()).is_some();
                assert!(mine != other.join().unwrap());
            });
        }

        #[test]
        fn handles_made_together_differ_and_an_old_one_names_no_new_object() {
            loom::model(|| {
                let old = insert(1);
                assert!(registry::remove(of(old).cast_const()).is_some());
                let other = thread::spawn(|| insert(2));
                let mine = insert(3);
                let other = other.join().unwrap();
                assert!(mine != other && mine != old && other != old);
                assert_eq!((read(of(old)), read(of(other)), read(of(mine))), (None, Some(2), Some(3)));
            });
        }
    }
}
