//! Stands in for the crate `regex`, which `Cargo.toml` replaces by this one (`[patch.crates-io]`).
//!
//! oci-spec and libcontainer match a handful of short ASCII patterns (`execCPUAffinity`, the lines of Intel RDT) when a
//! specification asks for them. For that the real crate brings an optimising matcher and Unicode tables of several
//! hundred kilobytes, more than any other dependency. regex-lite has the same interface, and no Unicode classes: `\w`
//! and `\d` are ASCII, as those patterns mean them.

pub use regex_lite::{
    CaptureLocations, CaptureMatches, CaptureNames, Captures, Error, Match, Matches, NoExpand, Regex,
    RegexBuilder, Replacer, Split, SplitN, SubCaptureMatches, escape,
};
