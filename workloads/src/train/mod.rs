//! The `train` job: a small neural network learns to read handwritten digits.

mod data;
mod learning;
mod model;
mod picture;

pub use data::{CLASSES, Digits, PICTURE_SIDE, Subset};
pub use learning::{Confusion, Epoch, Metrics, TrainedNetwork, learn};
pub use model::Mlp;

use std::io::Write;

use crate::cli::TrainOptions;
use crate::error::Error;
use crate::output::OutputDir;
use crate::progress::Reporter;

/// Runs the job: trains a network, reports each epoch, and stores the model, the metrics and a picture.
pub fn run<W: Write>(options: &TrainOptions, output: &OutputDir, reporter: &mut Reporter<W>) -> Result<Metrics, Error> {
    let digits = Digits::load()?;
    reporter.log(&format!(
        "training with {} pictures of handwritten digits, testing with {} others",
        digits.train.len(),
        digits.test.len()
    ))?;
    let trained = learn(options, &digits, &mut |epoch| report_epoch(epoch, options, reporter))?;
    let metrics = &trained.metrics;
    let stored = [
        output.write("model.safetensors", &trained.model.to_safetensors()?)?,
        output.write_json("metrics.json", metrics)?,
        output.write("training.png", &picture::draw(metrics, &digits.test, &trained.predictions)?)?,
    ];
    for path in stored {
        reporter.log(&format!("stored {}", path.display()))?;
    }
    let percent = 100.0 * metrics.test_accuracy;
    reporter.log(&format!("{percent:.1} % of the test digits are read correctly"))?;
    reporter.progress(1.0, &format!("done, {percent:.1} % correct"))?;
    Ok(trained.metrics)
}

/// Reports one finished epoch: the progress of the job, the measurements, and a log line.
fn report_epoch<W: Write>(epoch: &Epoch, options: &TrainOptions, reporter: &mut Reporter<W>) -> Result<(), Error> {
    let (number, total) = (epoch.epoch, options.epochs);
    // The epochs make up 99 % of the progress. `run` reports the last percent after it has stored the results.
    let fraction = 0.99 * f64::from(number) / f64::from(total);
    reporter.progress(fraction, &format!("epoch {number} of {total}"))?;
    reporter.metric(&[
        ("epoch", f64::from(number)),
        ("train_loss", epoch.train_loss),
        ("test_loss", epoch.test_loss),
        ("test_accuracy", epoch.test_accuracy),
    ])?;
    reporter.log(&format!(
        "epoch {number:>3}: loss {:.4} (test {:.4}), {:.1} % correct",
        epoch.train_loss,
        epoch.test_loss,
        100.0 * epoch.test_accuracy
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: TrainOptions =
        TrainOptions { epochs: 4, hidden: 32, learning_rate: 0.005, batch: 32, variations: 4, seed: 7 };

    #[test]
    fn a_few_epochs_are_enough_to_read_most_digits() {
        let dir = tempfile::tempdir().unwrap();
        let output = OutputDir::open(dir.path()).unwrap();
        let mut log = Vec::new();
        let metrics = run(&OPTIONS, &output, &mut Reporter::new(&mut log)).unwrap();
        assert!(metrics.test_accuracy > 0.9, "{}", metrics.test_accuracy);

        let log = String::from_utf8(log).unwrap();
        assert_eq!(log.lines().filter(|line| line.starts_with("::metric ")).count(), 4);
        assert!(log.ends_with("% correct\n"), "{log}");

        let stored = std::fs::read_to_string(dir.path().join("metrics.json")).unwrap();
        let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
        assert_eq!(stored["seed"], 7);
        assert_eq!(stored["epochs"].as_array().unwrap().len(), 4);

        let weights = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        // The 32 hidden neurons of `OPTIONS`, each with a weight for each of the 8 x 8 pixels.
        let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
        assert_eq!(weights.tensor("layer1.weight").unwrap().shape(), [32, 64]);

        let picture = std::fs::File::open(dir.path().join("training.png")).unwrap();
        let picture = png::Decoder::new(std::io::BufReader::new(picture)).read_info().unwrap();
        assert_eq!(picture.info().size(), (1280, 1000));
    }

    #[test]
    fn the_same_seed_gives_the_same_metrics() {
        let digits = Digits::load().unwrap();
        let options = TrainOptions { epochs: 1, ..OPTIONS };
        let metrics = |seed| {
            let options = TrainOptions { seed, ..options.clone() };
            learn(&options, &digits, &mut |_| Ok(())).unwrap().metrics
        };
        assert_eq!(metrics(3), metrics(3));
        assert_ne!(metrics(3).epochs, metrics(4).epochs);
    }

    #[test]
    fn a_training_that_diverges_is_an_error() {
        let digits = Digits::load().unwrap();
        let options = TrainOptions { learning_rate: f64::MAX, ..OPTIONS };
        let error = learn(&options, &digits, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Diverged { epoch: 1 }));
    }
}
