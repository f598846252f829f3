//! From a secured connection to an admitted one: hellos, certificates, and which of two connections serves the link.
//!
//! ```text
//!  dialler                         acceptor
//!     | -- hello (certificate) -->    |   checks, decides which connection serves the link
//!     | <-- hello (certificate) --    |
//!   checks: up                        |
//!     | -- empty message -------->    |   up
//! ```
//! A side that is up knows that the other one has accepted it, so its first frame is not dropped.

use super::*;

/// Version of the exchange, first byte of a hello.
const HELLO_VERSION: u8 = 1;

/// Time between two log lines about refused certificates: a stranger must not fill the log.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The first message of each side.
struct Hello<'a> {
    instance: u64,
    certificate: &'a [u8],
}

impl<'a> Hello<'a> {
    fn encode(&self) -> Vec<u8> {
        [&[HELLO_VERSION][..], &self.instance.to_be_bytes(), self.certificate].concat()
    }

    fn decode(bytes: &'a [u8]) -> Result<Self, String> {
        let (&version, rest) = bytes.split_first().ok_or("Hello is empty")?;
        if version != HELLO_VERSION {
            return Err(format!("Hello has version {version}, this host speaks {HELLO_VERSION}"));
        }
        let (instance, certificate) = rest.split_first_chunk().ok_or("Hello is truncated")?;
        Ok(Self { instance: u64::from_be_bytes(*instance), certificate })
    }
}

impl Links {
    /// The handshake is done: the peer's key is proved.
    pub(super) fn on_secured(&mut self, tick: Tick, slot: u16, peer: Result<HostId, String>, path: Option<Path>) {
        let peer = match peer {
            Ok(peer) if peer != self.me => peer,
            Ok(_) => return self.end(tick, slot, CloseCode::Protocol, "This is my own key"),
            Err(error) => return self.end(tick, slot, CloseCode::Protocol, &error),
        };
        let Some(standing) = self.table.get_mut(slot).filter(|s| s.phase == Phase::Handshake) else { return };
        standing.peer = Some(peer);
        standing.path = path;
        standing.phase = Phase::Hello;
        let is_dialler = standing.role == Role::Dialler;
        if let Some(limits) = self.links.get(&peer).and_then(|link| link.limits) {
            self.order(tick, slot, Order::Limit { slot, limits });
        }
        if is_dialler {
            let message = self.hello();
            self.order(tick, slot, Order::Message { slot, message });
        }
    }

    /// Answers the hello of a connection that a peer dialled.
    pub(super) fn welcome(&mut self, tick: Tick, slot: u16) {
        let Some(standing) = self.table.get_mut(slot) else { return };
        let Some(host) = standing.peer else { return };
        standing.phase = Phase::Welcomed;
        let message = self.hello();
        self.order(tick, slot, Order::Admit { slot, host });
        self.order(tick, slot, Order::Message { slot, message });
        // Only one may come up. The larger host leaves the choice to the smaller one.
        let dialling = self.links.get(&host).and_then(|link| link.dialling);
        if let Some(dialling) = dialling.filter(|_| self.me < host) {
            self.end(tick, dialling, CloseCode::Duplicate, "The peer's connection serves the link");
        }
    }

    /// A peer has closed because of this host's certificate.
    pub(super) fn on_refused_by_peer(&mut self, tick: Tick, host: HostId, reason: String) {
        if self.refusals.may_log(tick.at) {
            tracing::warn!(%host, reason, "The peer refused this host's certificate");
        }
        self.events.push_back(LinkEvent::Refused { host, by_us: false, reason });
    }

    /// Takes a message that the connection's phase allows.
    pub(super) fn on_message(&mut self, tick: Tick, slot: u16, message: Vec<u8>) {
        let Some(standing) = self.table.get_mut(slot) else { return };
        let Some(host) = standing.peer else { return };
        match (standing.phase, standing.role) {
            (Phase::Hello, role) => {
                let instance = match self.check(tick, host, &message) {
                    Ok(instance) => instance,
                    Err(reason) => return self.end(tick, slot, CloseCode::Refused, &reason),
                };
                if let Some(standing) = self.table.get_mut(slot) {
                    standing.instance = instance;
                }
                match role {
                    Role::Dialler => self.rise(tick, slot, host),
                    Role::Acceptor => self.decide(tick, slot, host),
                }
            }
            (Phase::Welcomed, _) if message.is_empty() => self.rise(tick, slot, host),
            (Phase::Up, _) => self.events.push_back(LinkEvent::Message(host, message)),
            (Phase::Closed, _) => {}
            _ => self.end(tick, slot, CloseCode::Protocol, "Message out of turn"),
        }
    }

    /// Checks the peer's hello and returns its instance.
    fn check(&mut self, tick: Tick, host: HostId, message: &[u8]) -> Result<u64, String> {
        let hello = Hello::decode(message)?;
        if let Err(reason) = (self.admit)(&host, hello.certificate) {
            if self.refusals.may_log(tick.at) {
                tracing::warn!(%host, reason, "Refused a peer's certificate");
            }
            self.events.push_back(LinkEvent::Refused { host, by_us: true, reason: reason.clone() });
            return Err(reason);
        }
        self.link_mut(host);
        Ok(hello.instance)
    }

    /// A peer dialled and is welcome: answer now, or hold it back because another connection may serve the link.
    fn decide(&mut self, tick: Tick, slot: u16, host: HostId) {
        let Some(instance) = self.table.get(slot).map(|standing| standing.instance) else { return };
        let Some(link) = self.links.get(&host) else { return };
        let active = link.active.and_then(|slot| self.table.get(slot));
        // A host dials only when it has no link. If it has restarted, that is so; else its packets may have crossed.
        let crossed = link.dialling.is_some() || active.is_some_and(|active| active.instance == instance);
        if self.me < host
            && crossed
            && let Some(standing) = self.table.get_mut(slot)
        {
            standing.phase = Phase::Held { until: tick.at + HOLD_TIME };
            return;
        }
        self.welcome(tick, slot);
    }

    /// Both sides have accepted: this connection serves the link, and no other one does.
    fn rise(&mut self, tick: Tick, slot: u16, host: HostId) {
        let Some(standing) = self.table.get_mut(slot) else { return };
        standing.phase = Phase::Up;
        let (role, path) = (standing.role, standing.path.map(|path| path.to_string()));
        for other in self.slots_of(host) {
            if other != slot {
                self.end(tick, other, CloseCode::Duplicate, "Another connection serves the link");
            }
        }
        let Some(link) = self.links.get_mut(&host) else { return };
        link.rise(tick.at, slot);
        let place = link.place;
        if role == Role::Dialler {
            self.order(tick, slot, Order::Message { slot, message: Vec::new() });
        }
        self.relocate(tick, slot, place);
        self.order(tick, slot, Order::Serve { slot, host });
        tracing::debug!(%host, path, "Link up");
        self.events.push_back(LinkEvent::Up(host));
    }

    fn hello(&self) -> Vec<u8> {
        Hello { instance: self.instance, certificate: &self.certificate }.encode()
    }
}

/// When a refusal was logged last.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    last: Option<Instant>,
}

impl RefusalLog {
    fn may_log(&mut self, now: Instant) -> bool {
        let may = self.last.is_none_or(|last| now.duration_since(last) >= REFUSAL_LOG_INTERVAL);
        if may {
            self.last = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellos_round_trip_and_others_are_refused() {
        let bytes = Hello { instance: 7, certificate: b"certificate" }.encode();
        let hello = Hello::decode(&bytes).unwrap();
        assert_eq!((hello.instance, hello.certificate), (7, &b"certificate"[..]));
        assert!(Hello::decode(&[]).is_err());
        assert!(Hello::decode(&bytes[..5]).is_err());
        assert!(Hello::decode(&[&[9], &bytes[1..]].concat()).is_err());
    }

    #[test]
    fn refusals_are_logged_now_and_then() {
        let now = Instant::now();
        let mut log = RefusalLog::default();
        assert!(log.may_log(now));
        assert!(!log.may_log(now + Duration::from_secs(1)));
        assert!(log.may_log(now + REFUSAL_LOG_INTERVAL));
    }
}
