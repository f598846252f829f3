//! Reads the kernel's texts about processors, memory, load and control groups. No I/O.

/// Memory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) total_bytes: u64,
    pub(super) available_bytes: u64,
}

/// Processes that run or wait, as an average over three spans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadAverage {
    /// Over a minute.
    pub one_minute: f32,
    /// Over five minutes.
    pub five_minutes: f32,
    /// Over fifteen minutes.
    pub fifteen_minutes: f32,
}

/// Which control groups the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    /// None are mounted.
    None,
    /// One hierarchy for each controller, with or without a unified one beside them.
    V1,
    /// The unified hierarchy.
    V2,
}

impl CgroupVersion {
    /// The stable name, as the API shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// Reads `/proc/meminfo`.
pub(super) fn parse_meminfo(text: &str) -> Option<Memory> {
    let bytes = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let kibibytes: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    Some(Memory { total_bytes: bytes("MemTotal")?, available_bytes: bytes("MemAvailable")? })
}

/// Reads `/proc/loadavg`.
pub(super) fn parse_loadavg(text: &str) -> Option<LoadAverage> {
    let mut values = text.split_ascii_whitespace().map(|word| word.parse().ok().filter(|load: &f32| load.is_finite()));
    let mut next = || values.next().flatten();
    Some(LoadAverage { one_minute: next()?, five_minutes: next()?, fifteen_minutes: next()? })
}

/// Counts the processors in a list such as `0-3,8`.
pub(super) fn parse_cpu_list(text: &str) -> Option<u32> {
    let mut count: u32 = 0;
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// Reads `/proc/self/mounts`.
pub(super) fn parse_cgroup_version(mounts: &str) -> CgroupVersion {
    let types = || mounts.lines().filter_map(|line| line.split(' ').nth(2));
    if types().any(|kind| kind == "cgroup") {
        CgroupVersion::V1
    } else if types().any(|kind| kind == "cgroup2") {
        CgroupVersion::V2
    } else {
        CgroupVersion::None
    }
}

/// Whether a processor in `/proc/cpuinfo` has one of these flags.
pub(super) fn has_cpu_flag(cpuinfo: &str, flags: &[&str]) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .any(|(_, found)| found.split_ascii_whitespace().any(|flag| flags.contains(&flag)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn meminfo() {
        let text =
            "MemTotal:       24684092 kB\nMemFree:        22517256 kB\nMemAvailable:   24210156 kB\nBuffers: 8 kB\n";
        let memory = Memory { total_bytes: 24_684_092 * 1024, available_bytes: 24_210_156 * 1024 };
        assert_eq!(parse_meminfo(text), Some(memory));
        assert_eq!(parse_meminfo("MemTotal: 1 kB\nMemFree: 1 kB\n"), None, "kernels before 3.14");
        assert_eq!(parse_meminfo("MemTotal: -1 kB\nMemAvailable: 1 kB"), None);
    }

    #[test]
    fn loadavg() {
        let load = LoadAverage { one_minute: 0.68, five_minutes: 0.71, fifteen_minutes: 12.5 };
        assert_eq!(parse_loadavg("0.68 0.71 12.50 2/89 30288\n"), Some(load));
        assert_eq!(parse_loadavg("0.68 0.71"), None);
        assert_eq!(parse_loadavg("nan inf 0"), None);
    }

    #[test]
    fn cpu_lists() {
        for (text, count) in [("0\n", 1), ("0-3\n", 4), ("0-3,8,10-11\n", 7)] {
            assert_eq!(parse_cpu_list(text), Some(count), "{text}");
        }
        for wrong in ["", "3-0", "a", "0-", "0-4294967295"] {
            assert_eq!(parse_cpu_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn cgroup_versions() {
        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let hybrid = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        assert_eq!(parse_cgroup_version(unified), CgroupVersion::V2);
        assert_eq!(parse_cgroup_version(hybrid), CgroupVersion::V1);
        assert_eq!(parse_cgroup_version("proc /proc proc rw 0 0\n"), CgroupVersion::None);
    }

    #[test]
    fn cpu_flags() {
        let intel = "processor\t: 0\nflags\t\t: fpu vme de vmx ssse3\nbugs\t\t: svm\n";
        assert!(has_cpu_flag(intel, &["vmx", "svm"]));
        assert!(!has_cpu_flag(intel, &["svm"]));
        assert!(!has_cpu_flag("flags : fpu vmxx\nvmx flags: vnmi", &["vmx", "svm"]));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_not(text: String) {
            let _ = (parse_meminfo(&text), parse_loadavg(&text), parse_cpu_list(&text));
            let _ = (parse_cgroup_version(&text), has_cpu_flag(&text, &["vmx"]));
        }
    }
}
