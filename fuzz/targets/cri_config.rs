#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nakai_ctl::fuzz::cri_config(bytes));
