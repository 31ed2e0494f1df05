//! What was measured, as a table for people and as JSON for programs. It must not know how it was measured.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::Failure;

/// The variant all others are compared with.
const BASELINE: &str = "bare";

/// Below this part of its core the proxy was not the bottleneck.
const BUSY_ENOUGH: f64 = 0.9;

/// One round of one variant, or the medians of its rounds.
#[derive(Clone, Serialize)]
pub struct Measurement {
    /// Answers in a second, refusals included.
    pub requests_per_second: f64,
    /// Median time of an answer, in microseconds.
    pub p50_us: f64,
    /// 99th percentile of it, in microseconds.
    pub p99_us: f64,
    /// CPU time of the proxy process for one request, in microseconds.
    pub cpu_us_per_request: f64,
    /// The part of one core the proxy used, 0 to 1.
    pub busy: f64,
    /// Commands sent to Redis for one request.
    pub redis_operations_per_request: f64,
    /// The part of all answers that were refusals, 0 to 1.
    pub refused: f64,
    /// Calls of each Redis command in a round, those inside scripts included.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub redis_calls: BTreeMap<String, u64>,
}

impl Measurement {
    fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            median(&sorted(rounds.iter().map(figure))).unwrap_or(f64::NAN)
        };
        Self {
            requests_per_second: of(|round| round.requests_per_second),
            p50_us: of(|round| round.p50_us),
            p99_us: of(|round| round.p99_us),
            cpu_us_per_request: of(|round| round.cpu_us_per_request),
            busy: of(|round| round.busy),
            redis_operations_per_request: of(|round| round.redis_operations_per_request),
            refused: of(|round| round.refused),
            redis_calls: BTreeMap::new(),
        }
    }
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    what: &'static str,
    median: Measurement,
    /// Requests/s next to those of the bare proxy in the same round; speeds of rounds differ, these less.
    ratio_to_bare: Option<Ratio>,
    rounds: Vec<Measurement>,
}

/// All variants of one run, in the order they were first measured.
#[derive(Serialize)]
pub struct Report {
    seconds: u64,
    connections: u32,
    placement: String,
    variants: Vec<Row>,
    /// Requests/s of the bare proxy, one a round; empty where it is not measured.
    #[serde(skip)]
    baseline: Vec<f64>,
}

/// How one figure compares with another over all rounds.
#[derive(Serialize)]
struct Ratio {
    least: f64,
    median: f64,
    most: f64,
}

impl Ratio {
    fn of(rounds: &[Measurement], baseline: &[f64]) -> Option<Self> {
        let ratios = rounds
            .iter()
            .zip(baseline)
            .map(|(round, baseline)| round.requests_per_second / baseline);
        let ratios = sorted(ratios);
        Some(Self { least: *ratios.first()?, median: median(&ratios)?, most: *ratios.last()? })
    }
}

fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// The middle of sorted figures, or the mean of the two in the middle.
fn median(sorted: &[f64]) -> Option<f64> {
    let (low, high) =
        (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}

impl Report {
    /// Nothing measured yet.
    pub fn new(seconds: u64, connections: u32, placement: String) -> Self {
        Self { seconds, connections, placement, variants: Vec::new(), baseline: Vec::new() }
    }

    /// Takes one round of a variant.
    pub fn add(&mut self, name: &'static str, what: &'static str, round: Measurement) {
        let index = self.variants.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.variants.push(Row {
                name,
                what,
                median: round.clone(),
                ratio_to_bare: None,
                rounds: Vec::new(),
            });
            self.variants.len() - 1
        });
        if name == BASELINE {
            self.baseline.push(round.requests_per_second);
        }
        let row = &mut self.variants[index];
        row.rounds.push(round);
        row.median = Measurement::median(&row.rounds);
        row.ratio_to_bare = Ratio::of(&row.rounds, &self.baseline);
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<(), Failure> {
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok(fs::write(file, serde_json::to_string_pretty(self)? + "\n")?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.variants.first().map_or(0, |row| row.rounds.len());
        writeln!(
            out,
            "\nmedians of {rounds} rounds of {} s, {} connections, {}\n",
            self.seconds, self.connections, self.placement
        )?;
        writeln!(
            out,
            "{:<14} {:>10} {:>17} {:>8} {:>8} {:>11} {:>6} {:>10} {:>8}  what",
            "variant",
            "requests/s",
            "of bare",
            "p50 µs",
            "p99 µs",
            "CPU µs/req",
            "busy",
            "Redis/req",
            "refused"
        )?;
        for row in &self.variants {
            let median = &row.median;
            let ratio = match &row.ratio_to_bare {
                Some(Ratio { least, median, most }) => {
                    format!("{median:.2} ({least:.2}-{most:.2})")
                }
                None => "-".to_owned(),
            };
            writeln!(
                out,
                "{:<14} {:>10.0} {:>17} {:>8.0} {:>8.0} {:>11.1} {:>5.0}% {:>10.4} {:>7.1}%  {}",
                row.name,
                median.requests_per_second,
                ratio,
                median.p50_us,
                median.p99_us,
                median.cpu_us_per_request,
                median.busy * 100.0,
                median.redis_operations_per_request,
                median.refused * 100.0,
                row.what
            )?;
        }
        let idle = self.variants.iter().filter(|row| row.median.busy < BUSY_ENOUGH);
        let idle: Vec<_> = idle.map(|row| row.name).collect();
        if !idle.is_empty() {
            writeln!(
                out,
                "\nthe proxy was not the bottleneck (others used its core, or it waited): {}; trust CPU µs/req only",
                idle.join(", ")
            )?;
        }
        Ok(())
    }
}
