//! Samples, by figure and subject.

use std::collections::BTreeMap;

/// The samples of one figure of one subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

/// All figures, in the order in which they were first seen.
#[derive(Default)]
pub(crate) struct Figures {
    /// Name and unit.
    pub(crate) names: Vec<(&'static str, &'static str)>,
    samples: BTreeMap<(&'static str, &'static str), Samples>,
}

impl Figures {
    pub(crate) fn add(
        &mut self,
        subject: &'static str,
        figure: &'static str,
        unit: &'static str,
        value: f64,
    ) {
        if !self.names.contains(&(figure, unit)) {
            self.names.push((figure, unit));
        }
        self.samples.entry((subject, figure)).or_default().0.push(value);
    }

    pub(crate) fn get(&self, subject: &'static str, figure: &'static str) -> Option<&Samples> {
        self.samples.get(&(subject, figure))
    }
}
