//! Connections to the server between the edges, each with a deadline for everything and a bound on
//! what it may answer.

use std::{
    io,
    ops::{Deref, DerefMut},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisResult, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinHandle,
    time,
};

use super::Fleet;
use crate::{lookup, tls::client};

/// A connection; with it ends the task that drives it, whatever is still owed.
pub(super) struct Server {
    connection: MultiplexedConnection,
    driver: JoinHandle<()>,
}

impl Deref for Server {
    type Target = MultiplexedConnection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects. An answer may take as long as the configuration says, and `more`.
///
/// # Errors
/// If it cannot be reached in time, does not prove who it is, or refuses the login.
pub(super) async fn connect(fleet: &Fleet, more: Duration) -> Result<Server, String> {
    let timeout = fleet.settings.timeout;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(timeout + more));
    let work = async {
        let login = login(fleet)?;
        let server = &fleet.settings.server;
        let failed = |error: io::Error| error.to_string();
        let stream = lookup::connect(&server.host, server.port).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        if !server.is_secure {
            return begin(stream, &login, config).await;
        }
        // Read again each time: certificates and authorities change.
        let tls = client::bare(server.authorities.as_deref(), server.client.as_ref());
        let tls = tls.map_err(failed)?;
        begin(client::connect(tls, &server.host, stream).await.map_err(failed)?, &login, config)
            .await
    };
    time::timeout(timeout, work).await.map_err(|_| "it took too long".to_owned())?
}

async fn begin(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    login: &RedisConnectionInfo,
    config: AsyncConnectionConfig,
) -> Result<Server, String> {
    let stream = Bounded { stream, answered: 0 };
    let begun = MultiplexedConnection::new_with_config(login, stream, config).await;
    let (connection, driver) = said(begun)?;
    Ok(Server { connection, driver: tokio::spawn(driver) })
}

fn login(fleet: &Fleet) -> Result<RedisConnectionInfo, String> {
    let (user, password) = &fleet.settings.login;
    let mut login = RedisConnectionInfo::default().set_db(fleet.settings.server.database);
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(origin) = password {
        let secret = origin.read().map_err(|fault| format!("{origin}: {fault}"))?;
        let secret = secret.without_line_end();
        login = login.set_password(String::from_utf8_lossy(secret.expose()));
    }
    Ok(login)
}

/// An error in words.
pub(super) fn told(error: &redis::RedisError) -> String {
    error.to_string()
}

/// A value, or the error in words.
pub(super) fn said<T>(result: RedisResult<T>) -> Result<T, String> {
    result.map_err(|error| told(&error))
}

/// A stream on which no more may come than [`ANSWER_MAX`] between two questions: the reader of answers
/// keeps what it has of one until it is whole.
struct Bounded<S> {
    stream: S,
    answered: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.answered += buffer.filled().len() - before;
        if self.answered > ANSWER_MAX {
            return Poll::Ready(Err(io::Error::other("its answer is too long")));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.answered = 0;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The largest answer, in bytes: a page of a thousand records is less than a hundredth of it.
const ANSWER_MAX: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use redis::{Value, cmd};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A server that says this to whatever it is asked, again and again.
    async fn asked(answer: &'static [u8], times: usize) -> Result<Value, String> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let serve = tokio::spawn(async move {
            let _ = theirs.read(&mut [0; 1024]).await;
            for _ in 0..times {
                if theirs.write_all(answer).await.is_err() {
                    return;
                }
            }
            let _ = theirs.read(&mut [0; 1024]).await;
        });
        let login = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let mut server = begin(ours, &login, config).await?;
        let answer = said(cmd("PING").to_owned().query_async(&mut *server).await);
        serve.abort();
        answer
    }

    #[tokio::test]
    async fn an_answer_without_end_is_cut_short() {
        let endless = format!("${}\r\n", 1_u64 << 40).leak().as_bytes();
        assert!(asked(b"+PONG\r\n", 1).await.is_ok());
        // The length that it announces is no reason to wait for as much.
        let part = vec![b'x'; 1 << 20].leak();
        let whole: &'static [u8] = [endless, part].concat().leak();
        let error = asked(whole, 64).await.unwrap_err();
        assert!(!error.is_empty());
    }
}
