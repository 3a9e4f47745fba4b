//! A root filesystem that goes into the guest by CopyFile.
//!
//! What is measured is the agent, so the programs that containers run lie in the guest's memory, as they do beneath an
//! image on a disk that has been read once. Of a shared directory the guest keeps no pages unless its daemon lets it:
//! every execve(2) would then fetch the program from the host anew, which costs more than all that an agent does.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nakai_ctl::Client;
use nakai_protocols::agent::CopyFileRequest;

use super::Fallible;

/// Small enough for one message of any transport.
const CHUNK: usize = 1 << 20;

/// Copies what is beneath `from` to `to` in the guest.
pub(crate) async fn tree(client: &Client, from: &Path, to: &str) -> Fallible<()> {
    let mut directories = vec![(from.to_owned(), to.to_owned())];
    while let Some((directory, there)) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let path = format!("{there}/{}", name.to_str().ok_or("a name that is no text")?);
            let metadata = entry.metadata()?;
            let mut request = CopyFileRequest {
                path,
                file_mode: metadata.permissions().mode(),
                dir_mode: 0o755,
                ..Default::default()
            };
            if metadata.is_dir() {
                directories.push((entry.path(), request.path.clone()));
                send(client, &request).await?;
            } else if metadata.is_symlink() {
                request.data = fs::read_link(entry.path())?.as_os_str().as_bytes().to_vec();
                request.file_size = i64::try_from(request.data.len())?;
                send(client, &request).await?;
            } else {
                file(client, request, &fs::read(entry.path())?).await?;
            }
        }
    }
    Ok(())
}

async fn file(client: &Client, mut request: CopyFileRequest, content: &[u8]) -> Fallible<()> {
    request.file_size = i64::try_from(content.len())?;
    if content.is_empty() {
        return send(client, &request).await;
    }
    for chunk in content.chunks(CHUNK) {
        request.data = chunk.to_vec();
        send(client, &request).await?;
        request.offset += i64::try_from(chunk.len())?;
    }
    Ok(())
}

async fn send(client: &Client, request: &CopyFileRequest) -> Fallible<()> {
    client
        .agent()
        .copy_file(client.context(), request)
        .await
        .map_err(|error| format!("{}: {error}", request.path))?;
    Ok(())
}
