//! What the demo prints.

use std::{sync::Once, time::Duration};

use slotmesh_e2e::{Log, metrics, metrics::Scrape, stats};

/// The width of a bar of 100 percent.
const BAR: usize = 40;

/// `12,345`
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// Where the connections went, against what was asked for: `versions` with weight and name.
pub fn split(log: &Log, versions: &[(&str, u32, u64)]) {
    share(log.len(), versions);
}

/// Who answered how many of `all`, against what was asked for: `versions` with weight and name.
pub fn share(all: usize, versions: &[(&str, u32, u64)]) {
    let total: u64 = versions.iter().map(|(.., count)| count).sum();
    println!("             asked   counted");
    for (name, weight, count) in versions {
        let share = if total == 0 { 0.0 } else { *count as f64 / total as f64 };
        let bar = "#".repeat((share * BAR as f64).round() as usize);
        let count = thousands(*count as usize);
        let line = format!("      {name:<5} {weight:>4} %   {count:>7}  {:>5.1} %  {bar}", share * 100.0);
        println!("{}", line.trim_end());
    }
    let failed = all - total as usize;
    let chosen: Vec<_> = versions.iter().filter(|(_, weight, _)| *weight > 0).collect();
    let counts: Vec<_> = chosen.iter().map(|(.., count)| *count).collect();
    let weights: Vec<_> = chosen.iter().map(|(_, weight, _)| *weight).collect();
    let verdict = match stats::p_value(&counts, &weights) {
        Ok(p) if p >= stats::ALPHA => format!("; the split fits the weights (chi-square, p = {p:.2})"),
        Ok(p) => format!("; THE SPLIT DOESN'T FIT THE WEIGHTS (chi-square, p = {p:e})"),
        // One version has everything.
        Err(_) => String::new(),
    };
    println!("      {} failed{verdict}", thousands(failed));
}

/// The flushes between two scrapes, by type of resource.
pub fn flushes(before: &Scrape, after: &Scrape, seen: Duration) {
    let list: Vec<_> = metrics::TYPES
        .iter()
        .filter_map(|of| {
            let count = after.flushes(of).checked_sub(before.flushes(of)).filter(|count| *count > 0)?;
            let mean = (after.flush_seconds(of) - before.flush_seconds(of)) / count as f64;
            Some(format!("{count} {of}, {:.1} us{}", mean * 1e6, if count > 1 { " each" } else { "" }))
        })
        .collect();
    static EXPLAINED: Once = Once::new();
    static EXPLAINED_WAIT: Once = Once::new();
    println!("   flush latency: {}", list.join("; "));
    EXPLAINED.call_once(|| {
        println!("      (by the agent's histogram: from a validated resource to its records being current in the maps)");
    });
    println!("   from saving the file to seeing that in the metrics: {} ms", seen.as_millis());
    EXPLAINED_WAIT.call_once(|| {
        println!("      (20 ms of it slotmesh waits, in case an editor goes on writing; we look every 2 ms)");
    });
}

/// A heading.
pub fn step(number: u32, title: &str) {
    println!("\n{number}. {title}");
}

/// Text of another program, set apart.
pub fn quote(text: &str) {
    for line in text.lines() {
        println!("   | {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn numbers_are_grouped_from_the_right() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
