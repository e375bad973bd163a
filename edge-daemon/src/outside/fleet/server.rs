//! Connections to the server between the edges, each with a deadline for everything.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisResult, aio::MultiplexedConnection,
};

use super::Fleet;

/// Connects. An answer may take as long as the configuration says, and `more`.
///
/// # Errors
/// If it cannot be reached in time, or refuses the login.
pub(super) async fn connect(
    fleet: &Fleet,
    more: Duration,
) -> Result<MultiplexedConnection, String> {
    let client = Client::open(info(fleet)?).map_err(|error| told(&error))?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(fleet.settings.timeout))
        .set_response_timeout(Some(fleet.settings.timeout + more));
    let connected = client.get_multiplexed_async_connection_with_config(&config).await;
    connected.map_err(|error| told(&error))
}

fn info(fleet: &Fleet) -> Result<ConnectionInfo, String> {
    let (host, port, database) = &fleet.settings.server;
    let (user, password) = &fleet.settings.login;
    let mut login = RedisConnectionInfo::default().set_db(*database);
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(origin) = password {
        let secret = origin.read().map_err(|fault| format!("{origin}: {fault}"))?;
        let secret = secret.without_line_end();
        login = login.set_password(String::from_utf8_lossy(secret.expose()));
    }
    let address = ConnectionAddr::Tcp(host.clone(), *port);
    let info = address.into_connection_info().map_err(|error| told(&error))?;
    Ok(info.set_redis_settings(login))
}

/// An error in words.
pub(super) fn told(error: &redis::RedisError) -> String {
    error.to_string()
}

/// A value, or the error in words.
pub(super) fn said<T>(result: RedisResult<T>) -> Result<T, String> {
    result.map_err(|error| told(&error))
}
