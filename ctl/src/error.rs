//! The error of a call to the agent: which call, on what, and why.

use std::fmt;

use ttrpc::Code;

/// What the transport says when a call's time is up; it has no variant of its own for that.
const DEADLINE: &str = "Request deadline elapsed";

/// How the transport ends what it says of a call on a connection that has ended before it: there is no variant for that
/// either.
const CLOSED: &str = "channel closed";

/// A call that the agent refused, or that got no answer.
///
/// Printed as `CreateContainer web: ALREADY_EXISTS: container web exists`; the object is left out
/// where a call has none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CallError {
    /// The call's name in the protocol, such as `CreateContainer`.
    pub call: &'static str,
    /// What it was about: a container, or `container/exec`. Empty for calls about the guest.
    pub object: String,
    /// The agent's status code. [`Code::UNAVAILABLE`] with [`Self::connection_lost`] if there was
    /// none because the connection is gone.
    pub code: Code,
    /// The reason in words.
    pub message: String,
    /// The connection ended before the answer: the agent may or may not have acted.
    pub connection_lost: bool,
}

impl CallError {
    /// Attaches a call and its object to what the transport reported.
    pub fn new(call: &'static str, object: impl Into<String>, error: ttrpc::Error) -> Self {
        let (code, message, connection_lost) = match error {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message, false),
            ttrpc::Error::Socket(message) => (Code::UNAVAILABLE, format!("connection lost: {message}"), true),
            ttrpc::Error::Nix(errno) => (Code::UNAVAILABLE, format!("connection lost: {errno}"), true),
            ttrpc::Error::LocalClosed | ttrpc::Error::RemoteClosed | ttrpc::Error::Eof => {
                (Code::UNAVAILABLE, "connection lost".to_owned(), true)
            }
            // The transport's own clock may run out before the agent's answer that its did.
            ttrpc::Error::Others(message) if message == DEADLINE => (Code::DEADLINE_EXCEEDED, message, false),
            ttrpc::Error::Others(message) if message.ends_with(CLOSED) => {
                (Code::UNAVAILABLE, "connection lost".to_owned(), true)
            }
            ttrpc::Error::Others(message) => (Code::UNKNOWN, message, false),
        };
        Self { call, object: object.into(), code, message, connection_lost }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.call)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        write!(f, ": {:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for CallError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_call_object_and_reason() {
        let status = ttrpc::get_status(Code::ALREADY_EXISTS, "container web exists");
        let error = CallError::new("CreateContainer", "web", ttrpc::Error::RpcStatus(status));
        assert_eq!(error.to_string(), "CreateContainer web: ALREADY_EXISTS: container web exists");
        assert!(!error.connection_lost);

        let late = ttrpc::Error::Others("reserve channel capacity failed: channel closed".to_owned());
        for error in [ttrpc::Error::RemoteClosed, late] {
            let error = CallError::new("Check", "", error);
            assert_eq!(error.to_string(), "Check: UNAVAILABLE: connection lost");
            assert!(error.connection_lost);
        }
    }
}
