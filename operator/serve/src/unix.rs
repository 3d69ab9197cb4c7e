//! Connections on a Unix socket: who may connect is the matter of its mode and group, and how many may is bounded.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::server::Connected;

/// Read and write for owner and group: both are needed to connect.
const MODE: u32 = 0o660;

/// A Unix socket that is listened on. It is removed when this is dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file.
    file: (u64, u64),
    places: Arc<Semaphore>,
}

/// A connection on a Unix socket. It has one of the places.
#[derive(Debug)]
pub struct UnixConnection {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl UnixSocket {
    /// Listens at a path, in the place of what an earlier process has left there. Owner and group may connect, as many
    /// as `most` at a time; further ones are closed at once.
    ///
    /// # Errors
    /// Where the path can't be used, or can't be the group's.
    pub fn bind(path: &Path, group: Option<u32>, most: usize) -> io::Result<Self> {
        // It gets its name when its rights are what they should be.
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        let placed = chown(&new, None, group)
            .and_then(|()| fs::set_permissions(&new, Permissions::from_mode(MODE)))
            .and_then(|()| identity(&new))
            .and_then(|file| fs::rename(&new, path).map(|()| file));
        match placed {
            Ok(file) => {
                Ok(Self { listener, path: path.to_owned(), file, places: Arc::new(Semaphore::new(most)) })
            }
            Err(error) => {
                drop(fs::remove_file(&new));
                Err(error)
            }
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // A successor may have its own there already.
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Stream for UnixSocket {
    type Item = io::Result<UnixConnection>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Poll::Ready(accepted) = self.listener.poll_accept(context) else { return Poll::Pending };
            let (stream, _) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            match Arc::clone(&self.places).try_acquire_owned() {
                Ok(place) => return Poll::Ready(Some(Ok(UnixConnection { stream, _place: place }))),
                Err(_full) => {
                    tracing::warn!(socket = %self.path.display(), "too many connections: one is closed")
                }
            }
        }
    }
}

impl Connected for UnixConnection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for UnixConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for UnixConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_the_owners_and_bounded_and_takes_the_place_of_an_earlier_one() {
        let folder = std::env::temp_dir().join(format!("slotmesh-unix-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("proxy.sock");
        fs::write(&path, "left by an earlier one").unwrap();
        let mut socket = UnixSocket::bind(&path, None, 1).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let first = UnixStream::connect(&path).await.unwrap();
        let mut second = UnixStream::connect(&path).await.unwrap();
        let served = socket.next().await.unwrap().unwrap();
        assert!(futures::poll!(socket.next()).is_pending());
        assert_eq!(second.read(&mut [0]).await.unwrap(), 0, "there is no place");
        drop((first, served));
        let _third = UnixStream::connect(&path).await.unwrap();
        socket.next().await.unwrap().unwrap();
        // Whoever takes its place keeps it.
        let next = UnixSocket::bind(&path, None, 1).unwrap();
        drop(socket);
        assert!(path.exists());
        drop(next);
        assert!(!path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
