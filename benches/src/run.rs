//! What every benchmark program does around its measurements.

use std::{fs, io, path::Path, process::Command, thread};

use crate::report;

/// Prints machine, kernel and date.
///
/// # Errors
/// When they can't be read.
pub fn introduce() -> io::Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let (_, model) = model.unwrap_or(("", " unknown processor"));
    let count = thread::available_parallelism()?;
    let date = Command::new("date").args(["-u", "+%F"]).output()?;
    report::line(&format!(
        "\nMeasured on {}, Linux {}, {count} processors of the kind{model}, in a virtual machine.",
        String::from_utf8_lossy(&date.stdout).trim(),
        kernel.trim()
    ));
    Ok(())
}

/// Whether a short run is wanted.
pub fn is_quick() -> bool {
    std::env::var("SLOTMESH_BENCH").is_ok_and(|value| value == "quick")
}

/// So many rounds, or a tenth of them.
pub fn effort(rounds: usize) -> usize {
    if is_quick() { rounds.div_ceil(10) } else { rounds }
}

/// Writes a page of the repository: an introduction, then what was reported.
///
/// # Errors
/// When it can't be written.
pub fn write_page(page: &str, introduction: &str) -> io::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
    fs::write(&path, format!("{}\n{}", introduction.trim_end(), report::take_page()))?;
    println!("\nwritten to {page}");
    Ok(())
}
