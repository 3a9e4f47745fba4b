#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nakai::fuzz::cdi_file(bytes));
