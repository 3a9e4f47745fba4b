//! The home directory of a user, from the container's own /etc/passwd: passwd(5).

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// More than this of the file is not looked at: it belongs to the container.
const MAX_PASSWD: u64 = 1024 * 1024;

/// Looks `uid` up. Called in the container's root; the file may be anything, so nothing waits for it.
pub(super) fn home_of(uid: u32) -> Option<String> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open("/etc/passwd").ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    // Most are smaller than this, and read at once.
    let mut text = Vec::with_capacity(4096);
    file.take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    find_home(&String::from_utf8_lossy(&text), uid)
}

fn find_home(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let entry = fields.nth(2)?.parse::<u32>().ok()?;
        let home = fields.nth(2)?;
        (entry == uid && home.starts_with('/')).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_of_a_uid_is_the_sixth_field_of_its_first_line() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\n\
                      app:x:1000:1000::/home/app:/bin/sh\nagain:x:1000:1000::/elsewhere:\nnone:x:7:7::relative:\n";
        assert_eq!(find_home(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(find_home(passwd, 1000).as_deref(), Some("/home/app"));
        assert_eq!(find_home(passwd, 7), None, "not a path");
        assert_eq!(find_home(passwd, 8), None);
        assert_eq!(find_home("", 0), None);
    }
}
