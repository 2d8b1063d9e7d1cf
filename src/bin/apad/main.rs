//! The command line. Arguments, logging and signals; the work is the library's.

fn main() {}
