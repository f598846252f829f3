//! The service station of networks: DHCP and DNS for the stations at this host's ports.

use super::Core;
use super::directory::{Everywhere, InNetwork};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use virtuoso_overlay::ids::{Mac, NetworkId};
use virtuoso_overlay::names::lease::{self, Lease};
use virtuoso_overlay::names::{AddressPlan, Owner, SERVICE_MAC, host_mac, zone};
use virtuoso_overlay::switch::Assignment;
use virtuoso_overlay::table::Body;
use virtuoso_overlay::wire::dhcp::{self, DhcpView};
use virtuoso_overlay::wire::dns;
use virtuoso_overlay::wire::ethernet::EthernetView;
use virtuoso_overlay::wire::udp::{self, UdpView};

/// Who a station is, and which address it has.
struct Station {
    ip: Ipv4Addr,
    name: Option<String>,
    /// Whether it is a VM, whose address is claimed already.
    is_vm: bool,
}

impl Core {
    /// Answers a frame for the service station.
    pub(super) fn on_service(&mut self, network: NetworkId, frame: &[u8]) {
        let Some(plan) = self.networks.plan(network) else { return };
        let Ok(view) = EthernetView::new_checked(frame) else { return };
        let answer = match UdpView::new_checked(&view) {
            Ok(datagram) if datagram.dst.port() == dhcp::SERVER_PORT && plan.dhcp => {
                self.answer_dhcp(network, plan, &view, &datagram)
            }
            Ok(datagram) if datagram.dst == SocketAddrV4::new(plan.subnet.service(), dns::PORT) => {
                let directory = InNetwork::new(self, network, plan.subnet);
                zone::answer(datagram.payload, &directory, None)
                    .and_then(|bytes| udp::build((SERVICE_MAC, datagram.dst), (view.src(), datagram.src), &bytes))
            }
            Ok(_) => None,
            Err(_) if view.dst() == SERVICE_MAC => udp::build_echo_reply(&view),
            Err(_) => None,
        };
        if let Some(answer) = answer {
            self.plane.switch(move |switch, _| switch.serve(network, &answer));
        }
    }

    /// Answers a question to this host's own resolver. Only over UDP an answer may be cut.
    pub fn answer_dns(&self, question: &[u8], bytes_max: Option<usize>) -> Option<Vec<u8>> {
        zone::answer(question, &Everywhere(self), bytes_max)
    }

    fn answer_dhcp(
        &mut self,
        network: NetworkId,
        plan: AddressPlan,
        view: &EthernetView<'_>,
        datagram: &UdpView<'_>,
    ) -> Option<Vec<u8>> {
        let request = DhcpView::new_checked(datagram.payload).ok()?;
        let mac = request.client_mac();
        // Nobody asks for somebody else.
        let Station { ip, name, is_vm } = self.station(network, plan, mac).filter(|_| view.src() == mac)?;
        let (mtu, domain) = (self.networks.mtu(network)?, format!("{}.{}", self.network_name(network), zone::ZONE));
        let answer = lease::answer(&request, &Lease { ip, plan, mtu, name, domain })?;
        if let Some(ip) = answer.granted.filter(|_| !is_vm) {
            let given = Assignment { ip, subnet: plan.subnet, guarded: false };
            self.plane.switch(move |switch, now| switch.assign(now, network, mac, None, given));
        }
        tracing::debug!(%network, %mac, %ip, wish = ?request.wish, "Answered DHCP");
        let to_mac = if answer.to.is_broadcast() { Mac::BROADCAST } else { mac };
        let from = SocketAddrV4::new(plan.subnet.service(), dhcp::SERVER_PORT);
        udp::build((SERVICE_MAC, from), (to_mac, SocketAddrV4::new(answer.to, dhcp::CLIENT_PORT)), &answer.bytes)
    }

    /// Who asks. `None` while its address is not decided, and for this host itself.
    fn station(&self, network: NetworkId, plan: AddressPlan, mac: Mac) -> Option<Station> {
        if mac == host_mac(network, self.me()) {
            return None;
        }
        let addresses = self.addresses_in(network, plan.subnet);
        let bodies = || self.node.iter().flat_map(|node| node.table().bodies());
        let vm = bodies().find_map(|(_, body)| match body {
            Body::Vm(row) => {
                let index = row.nics.iter().position(|nic| nic.0 == network && nic.1 == mac)?;
                Some((row, index))
            }
            _ => None,
        });
        if let Some((row, index)) = vm
            && let Some(IpAddr::V4(ip)) = row.nics[index].2
        {
            let owner = Owner::Vm(row.id, u8::try_from(index).unwrap_or(u8::MAX));
            let decided = addresses.is_free_for(ip, owner);
            return decided.then(|| Station { ip, name: Some(row.name.clone()), is_vm: true });
        }
        let owner = Owner::Station(mac);
        // What it was seen with it keeps, wherever it is plugged in.
        let seen = bodies().find_map(|(_, body)| match body {
            Body::Claim(claim) if claim.network == network && claim.mac == mac => {
                claim.ips.iter().find_map(|ip| match ip {
                    IpAddr::V4(ip) if addresses.is_free_for(*ip, owner) => Some(*ip),
                    IpAddr::V4(_) | IpAddr::V6(_) => None,
                })
            }
            _ => None,
        });
        let ip = seen.or_else(|| addresses.choose(owner))?;
        Some(Station { ip, name: vm.map(|(row, _)| row.name.clone()), is_vm: false })
    }
}
