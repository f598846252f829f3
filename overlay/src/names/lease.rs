//! What a client of DHCP is answered: a pure function of its message and of what is its own.

use super::AddressPlan;
use crate::wire::dhcp::{DhcpView, Kind, Wish};
use std::net::Ipv4Addr;

/// Seconds for which a lease holds. Half-way the client asks again: so soon it hears of another address.
pub const LEASE_S: u32 = 600;

/// What a station gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Its address.
    pub ip: Ipv4Addr,
    /// How addresses are given in its network.
    pub plan: AddressPlan,
    /// Largest IP packet of its network.
    pub mtu: u16,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What its network's names end with.
    pub domain: String,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The message.
    pub bytes: Vec<u8>,
    /// Where it goes: the limited broadcast if the client has no address yet, or can't hear otherwise.
    pub to: Ipv4Addr,
    /// The address that the client has from now on.
    pub granted: Option<Ipv4Addr>,
}

/// The answer to a client for which there is `lease`, if any.
pub fn answer(request: &DhcpView<'_>, lease: &Lease) -> Option<Answer> {
    let service = lease.plan.subnet.service();
    // Relayed requests come from another segment, and a request to another server is that one's to answer.
    if !request.relay_ip().is_unspecified() || request.server.is_some_and(|server| server != service) {
        return None;
    }
    let used = Some(request.client_ip()).filter(|ip| !ip.is_unspecified());
    let kind = match request.wish {
        Wish::Discover => Kind::Offer,
        Wish::Request if request.requested.or(used) == Some(lease.ip) => Kind::Ack,
        Wish::Request => Kind::Nak,
        Wish::Inform => Kind::Ack,
        Wish::Decline | Wish::Release => return None,
    };
    let gets_address = request.wish != Wish::Inform;
    let ip = if gets_address { lease.ip } else { Ipv4Addr::UNSPECIFIED };
    let given = lease.options(gets_address);
    let options: Vec<(u8, &[u8])> = match kind {
        Kind::Nak => Vec::new(),
        Kind::Offer | Kind::Ack => given.iter().map(|(option, value)| (*option, &value[..])).collect(),
    };
    let to = match used {
        Some(used) if kind != Kind::Nak => used,
        None if kind != Kind::Nak && !request.wants_broadcast() => lease.ip,
        _ => Ipv4Addr::BROADCAST,
    };
    let granted = (kind == Kind::Ack && gets_address).then_some(lease.ip);
    Some(Answer { bytes: request.build_answer(kind, ip, service, &options), to, granted })
}

impl Lease {
    fn options(&self, with_time: bool) -> Vec<(u8, Vec<u8>)> {
        let subnet = self.plan.subnet;
        let mut options = vec![
            (1, subnet.mask().octets().to_vec()),
            (6, subnet.service().octets().to_vec()),
            (15, self.domain.clone().into_bytes()),
            (26, self.mtu.to_be_bytes().to_vec()),
            (28, subnet.broadcast().octets().to_vec()),
        ];
        options.extend(self.name.clone().map(|name| (12, name.into_bytes())));
        if with_time {
            options.push((51, LEASE_S.to_be_bytes().to_vec()));
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Mac;
    use crate::wire::dhcp::tests::message;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const IP: [u8; 4] = [10, 8, 0, 7];
    const SERVICE: [u8; 4] = [10, 8, 0, 1];

    fn lease() -> Lease {
        let plan = AddressPlan { subnet: "10.8.0.0/24".parse().unwrap(), dhcp: true, host_addresses: true };
        Lease { ip: IP.into(), plan, mtu: 1500, name: Some("web".into()), domain: "blue.virtuoso".into() }
    }

    fn ask(options: &[(u8, &[u8])], change: impl FnOnce(&mut Vec<u8>)) -> Option<Answer> {
        let mut bytes = message(MAC, options);
        change(&mut bytes);
        answer(&DhcpView::new_checked(&bytes).unwrap(), &lease())
    }

    fn option(answer: &Answer, wanted: u8) -> Option<Vec<u8>> {
        let mut rest = &answer.bytes[240..];
        while let [option, length, after @ ..] = rest {
            let (value, after) = after.split_at(usize::from(*length));
            if *option == wanted {
                return Some(value.to_vec());
            }
            rest = if *option == 255 { &[] } else { after };
        }
        None
    }

    #[test]
    fn a_client_gets_its_address_and_all_that_belongs_to_it() {
        let offer = ask(&[(53, &[1])], |_| {}).unwrap();
        assert_eq!((option(&offer, 53), offer.to, offer.granted), (Some(vec![2]), IP.into(), None));
        let ack = ask(&[(53, &[3]), (50, &IP), (54, &SERVICE)], |bytes| bytes[10] = 0x80).unwrap();
        assert_eq!((option(&ack, 53), ack.to, ack.granted), (Some(vec![5]), Ipv4Addr::BROADCAST, Some(IP.into())));
        assert_eq!((&ack.bytes[16..20], option(&ack, 1)), (&IP[..], Some(vec![255, 255, 255, 0])));
        assert_eq!((option(&ack, 6), option(&ack, 26)), (Some(SERVICE.to_vec()), Some(vec![5, 0xdc])));
        assert_eq!((option(&ack, 12), option(&ack, 15)), (Some(b"web".to_vec()), Some(b"blue.virtuoso".to_vec())));
        assert_eq!((option(&ack, 51), option(&ack, 3)), (Some(600u32.to_be_bytes().to_vec()), None));
    }

    #[test]
    fn another_address_is_denied_and_a_renewal_answered_to_its_own() {
        let nak = ask(&[(53, &[3]), (50, &[10, 8, 0, 99])], |_| {}).unwrap();
        assert_eq!((option(&nak, 53), nak.to, nak.granted), (Some(vec![6]), Ipv4Addr::BROADCAST, None));
        assert_eq!((option(&nak, 1), &nak.bytes[16..20]), (None, &[0; 4][..]));
        let renewed = ask(&[(53, &[3])], |bytes| bytes[12..16].copy_from_slice(&IP)).unwrap();
        assert_eq!((option(&renewed, 53), renewed.to), (Some(vec![5]), IP.into()));
    }

    #[test]
    fn information_comes_without_an_address() {
        let ack = ask(&[(53, &[8])], |bytes| bytes[12..16].copy_from_slice(&[10, 8, 0, 200])).unwrap();
        assert_eq!((&ack.bytes[16..20], ack.to, ack.granted), (&[0; 4][..], [10, 8, 0, 200].into(), None));
        assert_eq!((option(&ack, 51), option(&ack, 6)), (None, Some(SERVICE.to_vec())));
    }

    #[test]
    fn what_is_not_for_us_is_not_answered() {
        assert_eq!(ask(&[(53, &[3]), (54, &[10, 8, 0, 2])], |_| {}), None);
        assert_eq!(ask(&[(53, &[1])], |bytes| bytes[24] = 10), None);
        assert_eq!(ask(&[(53, &[7])], |_| {}), None);
        assert_eq!(ask(&[(53, &[4])], |_| {}), None);
    }
}
