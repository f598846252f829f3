//! Single Ethernet frames by packet socket: what no IP stack would send, such as VLAN tags without a VLAN driver,
//! RARP announcements, or a forged source.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::{Guest, NIC};
use crate::interrupt;
use crate::sys;

pub(crate) type Mac = [u8; 6];

pub(crate) const BROADCAST: Mac = [0xff; 6];
pub(crate) const ETHERTYPE_RARP: u16 = 0x8035;
/// For experiments (IEEE 802).
pub(crate) const ETHERTYPE_EXPERIMENT: u16 = 0x88b5;

/// The NIC of a guest, raw.
pub(crate) struct RawNic {
    socket: OwnedFd,
    guest: String,
}

impl RawNic {
    pub(crate) fn open(guest: &Guest) -> Result<Self> {
        let socket = guest.namespace().enter(|| sys::open_packet(NIC).context("Cannot open a packet socket"))?;
        Ok(Self { socket, guest: guest.namespace().name().to_owned() })
    }

    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        sys::write(&self.socket, frame).context("Cannot send a frame").map(drop)
    }

    /// Waits for a frame with this source, VLAN tag and type; its payload.
    pub(crate) fn await_frame(&self, source: Mac, vlan: Option<u16>, ethertype: u16) -> Result<Vec<u8>> {
        match self.find_frame(source, vlan, ethertype, ARRIVAL_TIME_MAX)? {
            Some(payload) => Ok(payload),
            None => bail!(
                "{} waited {ARRIVAL_TIME_MAX:?} for a frame of type {ethertype:#06x}, VLAN {vlan:?} from {source:02x?}",
                self.guest
            ),
        }
    }

    /// The payload of the first such frame within `limit`.
    pub(crate) fn find_frame(
        &self,
        source: Mac,
        vlan: Option<u16>,
        ethertype: u16,
        limit: Duration,
    ) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 65_536];
        loop {
            interrupt::check()?;
            while let Ok(captured) = sys::receive_frame(&self.socket, &mut buffer) {
                let frame = &buffer[..captured.length];
                let matches = frame.get(6..12) == Some(&source[..])
                    && captured.vlan_tag == vlan
                    && frame.get(12..14) == Some(&ethertype.to_be_bytes()[..]);
                if matches {
                    return Ok(Some(frame[14..].to_vec()));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let _ = sys::wait_readable(&[self.socket.as_fd()], Some(left));
        }
    }
}

/// An Ethernet frame, with an 802.1Q tag if `vlan` is given.
pub(crate) fn frame(destination: Mac, source: Mac, vlan: Option<u16>, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [destination, source].concat();
    if let Some(tag) = vlan {
        frame.extend(ETHERTYPE_VLAN.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The announcement a hypervisor sends when a VM has arrived: a reverse ARP request for its own address.
pub(crate) fn rarp_announcement(mac: Mac) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 3];
    payload.extend(mac);
    payload.extend([0; 4]);
    payload.extend(mac);
    payload.extend([0; 4]);
    payload.resize(PAYLOAD_BYTES_MIN, 0);
    frame(BROADCAST, mac, None, ETHERTYPE_RARP, &payload)
}

pub(crate) fn parse_mac(text: &str) -> Result<Mac> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).with_context(|| format!("{text:?} is no MAC address")))
        .collect::<Result<_>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{text:?} is no MAC address"))
}

const ETHERTYPE_VLAN: u16 = 0x8100;
const PAYLOAD_BYTES_MIN: usize = 46;
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_stands_between_source_and_type() {
        let mac = parse_mac("02:00:00:00:00:0a").unwrap();
        let tagged = frame(BROADCAST, mac, Some(42), ETHERTYPE_EXPERIMENT, b"x");
        assert_eq!(tagged[6..12], mac);
        assert_eq!(tagged[12..], [0x81, 0x00, 0, 42, 0x88, 0xb5, b'x']);
    }

    #[test]
    fn an_announcement_is_a_whole_frame() {
        assert_eq!(rarp_announcement([2; 6]).len(), 60);
        assert!(parse_mac("02:00").is_err());
    }
}
