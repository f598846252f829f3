use super::*;
use virtuoso_engine::{LinkLimits, LinkSettings};
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::ids::HostId;

fn layer(text: &str) -> Layer {
    file::parse(text, "agent.toml").unwrap()
}

fn config(flags: &str, file: &str) -> Config {
    Config::merge(layer(flags), layer(file)).unwrap()
}

const FULL: &str = r#"
name = "alpha"
state_dir = "/srv/virtuoso"
socket = "/run/v.sock"
socket_group = "vm"
listen = "0.0.0.0:5000"
bootstrap = ["/ip4/192.0.2.1/udp/4747/quic-v1", "virtuoso-ticket:2NEpo7TZRRrLZSi2U"]
advertise = ["/ip4/203.0.113.7/udp/4747/quic-v1"]
mdns = false
drain_on_stop = true
drain_time_s = 90

[labels]
site = "berlin"
gpu = 1
ssd = true

[limits]
vcpus = 4
memory = "8GiB"
disk = 1073741824

[dns]
listen = "off"

[links]
congestion = "cubic"
rate_mbit = 250
threads = 3

[links.peers.beta]
rate_mbit = 50

[offloads]
uso = false

[log]
level = "debug"
format = "json"
"#;

#[test]
fn defaults() {
    let config = config("name = \"a\"", "");
    assert_eq!(config.state_dir, Path::new("/var/lib/virtuoso"));
    assert_eq!(config.socket, Path::new("/run/virtuoso/virtuoso.sock"));
    assert_eq!(config.listen.to_string(), "[::]:4747");
    assert!(config.mdns && config.bootstrap.is_empty() && config.labels.is_empty());
    assert_eq!(config.limits, Limits::default());
    assert_eq!((config.drain_on_stop, config.drain_time_s), (false, 300));
}

#[test]
fn the_file_sets_every_key() {
    let config = config("", FULL);
    assert_eq!(&*config.name, "alpha");
    assert_eq!(config.state_dir, Path::new("/srv/virtuoso"));
    assert_eq!(config.bootstrap.len(), 2);
    assert_eq!(config.labels["gpu"], "1");
    assert_eq!(config.labels["ssd"], "true");
    assert_eq!(config.limits.memory, Some(ByteSize(8 << 30)));
    assert_eq!(config.limits.disk, Some(ByteSize(1 << 30)));
    assert_eq!(config.log.format, LogFormat::Json);
    assert!(!config.mdns);
    assert_eq!(config.dns.listen, DnsListen::Off);
    let threads = 3.try_into().unwrap();
    assert_eq!(config.links.all, LinkSettings { congestion: Congestion::Cubic, rate_mbit: 250, threads });
    assert_eq!(config.offloads, TapOffloads { uso: false, ..TapOffloads::ALL });
}

#[test]
fn a_peer_has_settings_of_its_own() {
    let id = HostId([7; 32]);
    let links = config("name = \"a\"", &format!("{FULL}\n[links.peers.{id}]\ncongestion = \"delay\"")).links;
    let settings = |congestion, rate_mbit| LinkLimits { congestion, rate_mbit };
    assert_eq!(links.of(HostId([8; 32]), "gamma"), settings(Congestion::Cubic, 250));
    assert_eq!(links.of(HostId([8; 32]), "beta"), settings(Congestion::Cubic, 50), "by name");
    assert_eq!(links.of(id, "beta"), settings(Congestion::Delay, 250), "by id, which is more than a name");
    let odd = layer("name = \"a\"\n[links.peers.\"no name\"]\nrate_mbit = 1");
    assert!(Config::merge(odd, Layer::default()).unwrap_err().to_string().contains("`no name`"));
}

#[test]
fn flags_win_over_the_file() {
    let config = config("name = \"beta\"\nmdns = true\nbootstrap = []\nlog.level = \"warn\"", FULL);
    assert_eq!(&*config.name, "beta");
    assert!(config.mdns && config.bootstrap.is_empty());
    assert_eq!(config.log.level.to_string(), "warn");
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn a_named_file_must_exist_and_the_default_need_not() {
    let source = Source { file: Some("/nonexistent/agent.toml".into()), flags: layer("name = \"a\"") };
    assert!(source.load().unwrap_err().to_string().contains("/nonexistent/agent.toml"));
}

#[test]
fn bounds_are_checked() {
    let many: Vec<String> = (0..=ADDRESSES_MAX).map(|i| format!("\"/ip4/10.0.0.{i}/tcp/1\"")).collect();
    let text = format!("name = \"a\"\nbootstrap = [{}]", many.join(","));
    assert!(Config::merge(layer(&text), Layer::default()).is_err());
    for text in
        ["listen = \"[::]:0\"", "limits.vcpus = 0", "drain_time_s = 0", "drain_time_s = 3601", "offloads.csum = false"]
    {
        assert!(Config::merge(layer(&format!("name = \"a\"\n{text}")), Layer::default()).is_err(), "{text}");
    }
}

#[test]
fn reload_says_what_needs_a_restart() {
    let old = config("", FULL);
    assert_eq!(Config::reloadable_changes(&old, &old), Changes::default());
    let file = FULL.replace("rate_mbit = 250\nthreads = 3", "rate_mbit = 9\nthreads = 2");
    let new = config(
        "name = \"b\"\nmdns = true\ndrain_on_stop = false\nlabels.x = 1\nlimits.vcpus = 2\nlog.level = \"warn\"",
        &file,
    );
    let changes = Config::reloadable_changes(&old, &new);
    assert_eq!(changes.applied, ["labels", "limits", "drain_on_stop", "links", "log.level"]);
    assert_eq!(changes.needs_restart, ["name", "mdns", "links.threads"]);
    let running = old.reloaded(new.clone());
    assert_eq!((&running.labels, running.limits), (&new.labels, new.limits));
    assert_eq!((running.links.all.rate_mbit, running.links.all.threads), (9, old.links.all.threads));
    assert_eq!((running.drain_on_stop, running.drain_time_s), (false, 90));
    assert_eq!((running.name, running.mdns), (old.name, old.mdns));
}
