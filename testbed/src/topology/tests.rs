use std::time::Duration;

use super::*;

const TWO: &str = r#"
    [hosts.alpha]
    [hosts.beta]
    [links.wan]
    delay = "20ms"
    jitter = "500us"
    loss = "0.5%"
    rate = "1.5Mbit"
    queue = "50ms"
    [links.wan.members]
    alpha = ["10.77.0.1/24", "fd77::1/64"]
    beta = ["10.77.0.2/24"]
"#;

#[test]
fn parses_a_link() {
    let topology: Topology = TWO.parse().unwrap();
    let wan = &topology.links["wan"];
    assert_eq!(wan.impairment.delay, Span(Duration::from_millis(20)));
    assert_eq!(wan.impairment.jitter, Span(Duration::from_micros(500)));
    assert_eq!(wan.impairment.loss, Fraction(0.005));
    assert_eq!(wan.impairment.rate, Some(BitRate(1_500_000)));
    assert_eq!(wan.mtu, 1500);
    assert!(wan.is_emulated());
    assert_eq!(topology.founder(), "alpha");
    assert_eq!(topology.address_of("beta"), Some("10.77.0.2".parse().unwrap()));
}

#[test]
fn a_link_with_nothing_wrong_is_not_emulated() {
    let text = "hosts.a = {}\nhosts.b = {}\n[links.lan.members]\na = []\nb = []";
    assert!(!text.parse::<Topology>().unwrap().links["lan"].is_emulated());
}

#[test]
fn refuses_what_cannot_be_built() {
    for (broken, reason) in [
        (TWO.replace("beta = [\"", "gamma = [\""), "gamma is not a host"),
        (TWO.replace("20ms", "20"), "no time like"),
        (TWO.replace("0.5%", "0.5"), "no share like"),
        (TWO.replace("1.5Mbit", "0Mbit"), "is not in 1kbit"),
        (TWO.replace("10.77.0.1/24", "10.77.0.1/33"), "longer than 32"),
        (TWO.replace("10.77.0.1/24", "10.77.0.1"), "no address like"),
        (TWO.replace("500us", "21ms"), "larger than the delay"),
        (TWO.replace("[hosts.beta]", "[hosts.Beta]"), "must have 1 to 12"),
        (format!("founder = \"delta\"\n{TWO}"), "founder delta is not a host"),
        (format!("{TWO}\n[guests.vm]\nhost = \"alpha\"\nnetwork = \"blue\""), "no network blue"),
        (TWO.replace("delay", "dely"), "dely"),
    ] {
        let error = format!("{:#}", broken.parse::<Topology>().unwrap_err());
        assert!(error.contains(reason), "{error}");
    }
}
