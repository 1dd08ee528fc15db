//! The samples as a table.

use weir_benches::probe::Sample;
use weir_control::demo::stage::Family;

use super::Failing;

/// Prints a row for each failure and family; whether nine of ten are below its bar everywhere.
pub fn print(samples: &[(Failing, Family, [Sample; 2])]) -> bool {
    println!("traffic stops for (ms; packets lost of one each ms; both directions of all runs)");
    println!(
        "{:<22} {:<5} {:>5} {:>8} {:>8} {:>8} {:>8} {:>12} {:>8}",
        "weir", "IP", "runs", "median", "p90", "longest", "bar", "lost median", "most"
    );
    let mut all = true;
    for failing in Failing::ALL {
        for family in Family::BOTH {
            let of = samples.iter().filter(|(f, ip, _)| (*f, *ip) == (failing, family));
            let of: Vec<Sample> = of.flat_map(|(_, _, both)| *both).collect();
            let mut times: Vec<f64> = of.iter().map(Sample::outage_ms).collect();
            let mut lost: Vec<usize> = of.iter().map(|sample| sample.lost).collect();
            times.sort_by(f64::total_cmp);
            lost.sort_unstable();
            let Some(last) = times.len().checked_sub(1) else { continue };
            let bar = failing.bar().as_secs_f64() * 1e3;
            let median = times[last / 2];
            let most = times[last * 9 / 10];
            all &= most < bar;
            println!(
                "{:<22} {:<5} {:>5} {:>8.1} {:>8.1} {:>8.1} {:>8} {:>12} {:>8}",
                failing.name(),
                family.name(),
                times.len() / 2,
                median,
                most,
                times[last],
                bar,
                lost[last / 2],
                lost[last]
            );
        }
    }
    all
}
