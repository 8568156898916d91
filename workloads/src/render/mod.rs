//! The `render` job: renders coloured spheres by path tracing.
//!
//! Several threads render the picture in tiles. A thread that has finished a tile takes the next one, so all threads
//! work until the last tile.

mod light;
mod scene;

pub use light::radiance;
pub use scene::{Camera, Hit, Material, Ray, Scene, Sphere};

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use glam::Vec3;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::cli::RenderOptions;
use crate::error::Error;
use crate::number::{to_byte, to_f32, to_f64};
use crate::output::{OutputDir, encode_png};
use crate::progress::Reporter;

/// Width and height of a tile in pixels.
const TILE_SIZE: usize = 32;

/// Renders and stores the picture; returns the path of the file.
pub fn run<W: Write>(
    options: &RenderOptions,
    output: &OutputDir,
    reporter: &mut Reporter<W>,
) -> Result<PathBuf, Error> {
    let renderer = Renderer::new(options);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(renderer.tile_count());
    reporter.log(&format!(
        "rendering {} x {} pixels with {} paths of light each, using {workers} threads",
        renderer.width, renderer.height, renderer.samples
    ))?;
    let start = Instant::now();
    let pixels = renderer.render(workers, reporter)?;
    let seconds = start.elapsed().as_secs_f64();
    let paths = to_f64(renderer.width * renderer.height * renderer.samples);
    reporter.metric(&[("million_paths_per_second", paths / seconds.max(1e-9) / 1e6)])?;
    let path = output.write("render.png", &encode_png(renderer.width, renderer.height, &pixels)?)?;
    reporter.log(&format!("rendered in {seconds:.1} s, stored {}", path.display()))?;
    reporter.progress(1.0, "done")?;
    Ok(path)
}

/// The picture to render: its size, its scene, and its camera.
struct Renderer {
    width: usize,
    height: usize,
    /// The number of light paths for each pixel.
    samples: usize,
    seed: u64,
    scene: Scene,
    camera: Camera,
}

/// A finished tile of the picture.
struct Tile {
    number: usize,
    pixels: Vec<[u8; 3]>,
}

impl Renderer {
    fn new(options: &RenderOptions) -> Self {
        let (width, height) = (usize::from(options.width), usize::from(options.height));
        Self {
            width,
            height,
            samples: usize::from(options.samples),
            seed: options.seed,
            scene: Scene::new(options.seed),
            camera: Camera::new(width, height),
        }
    }

    fn tile_count(&self) -> usize {
        self.width.div_ceil(TILE_SIZE) * self.height.div_ceil(TILE_SIZE)
    }

    /// The columns and rows of the picture that a tile covers.
    fn area(&self, number: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let per_row = self.width.div_ceil(TILE_SIZE);
        let (left, top) = (number % per_row * TILE_SIZE, number / per_row * TILE_SIZE);
        (left..(left + TILE_SIZE).min(self.width), top..(top + TILE_SIZE).min(self.height))
    }

    /// Renders all tiles; the calling thread collects the tiles and reports the progress.
    fn render<W: Write>(&self, workers: usize, reporter: &mut Reporter<W>) -> Result<Vec<u8>, Error> {
        let tiles = self.tile_count();
        let next = AtomicUsize::new(0);
        let mut pixels = vec![0; 3 * self.width * self.height];
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for number in 0..workers {
                let (sender, next) = (sender.clone(), &next);
                let started =
                    thread::Builder::new().spawn_scoped(scope, move || self.render_tiles(next, &sender)).map(drop);
                match started {
                    Err(error) if number == 0 => return Err(Error::Thread(error)),
                    // The system refuses more threads, so the started threads do all the work.
                    Err(_) => break,
                    Ok(()) => {}
                }
            }
            drop(sender);
            let mut done = 0;
            for tile in receiver {
                self.copy_tile(&tile, &mut pixels);
                done += 1;
                let message = format!("{done} of {tiles} tiles");
                let reported = reporter.step(to_u32(done), to_u32(tiles + 1), &message);
                if reported.is_err() {
                    // The log is closed: start no further tile.
                    next.store(tiles, Ordering::Relaxed);
                    return reported;
                }
            }
            if done < tiles { Err(Error::Unfinished { missing: tiles - done }) } else { Ok(()) }
        })?;
        Ok(pixels)
    }

    /// Renders tiles until none is left. `next` is the number of the next tile, for all threads.
    fn render_tiles(&self, next: &AtomicUsize, sender: &mpsc::Sender<Tile>) {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.tile_count() || sender.send(self.render_tile(number)).is_err() {
                return;
            }
        }
    }

    fn render_tile(&self, number: usize) -> Tile {
        let (columns, rows) = self.area(number);
        let positions = rows.flat_map(|row| columns.clone().map(move |column| (column, row)));
        // Each tile has its own random numbers, so the picture does not depend on the number of threads.
        let stream = u64::try_from(number).unwrap_or_default() << 32;
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed ^ stream);
        Tile { number, pixels: positions.map(|(column, row)| self.render_pixel(column, row, &mut rng)).collect() }
    }

    /// Copies the pixels of a tile into the picture.
    fn copy_tile(&self, tile: &Tile, pixels: &mut [u8]) {
        let (columns, rows) = self.area(tile.number);
        for (row, line) in rows.zip(tile.pixels.chunks(columns.len().max(1))) {
            let start = 3 * (row * self.width + columns.start);
            if let Some(target) = pixels.get_mut(start..start + 3 * line.len()) {
                target.copy_from_slice(line.as_flattened());
            }
        }
    }

    fn render_pixel(&self, column: usize, row: usize, rng: &mut Xoshiro256PlusPlus) -> [u8; 3] {
        let mut sum = Vec3::ZERO;
        for _ in 0..self.samples {
            let across = (to_f32(column) + rng.random::<f32>()) / to_f32(self.width);
            let down = (to_f32(row) + rng.random::<f32>()) / to_f32(self.height);
            let ray = self.camera.ray(across, down, light::random_in_circle(rng));
            let light = radiance(&self.scene, ray, rng);
            // Limits the brightness of one path: a rare, very bright path would show as a white speck.
            sum += light * (8.0 / light.max_element().max(8.0));
        }
        let mean = sum * (1.0 / to_f32(self.samples));
        mean.to_array().map(|channel| to_byte(tone_map(channel)))
    }
}

/// Converts light to the brightness of a screen, 0 to 1. Very bright light is compressed, as by photographic film.
fn tone_map(light: f32) -> f32 {
    let light = light * 0.6;
    let film = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14);
    film.clamp(0.0, 1.0).powf(1.0 / 2.2)
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: RenderOptions = RenderOptions { width: 70, height: 40, samples: 2, seed: 7 };

    #[test]
    fn the_picture_has_the_requested_size() {
        let dir = tempfile::tempdir().unwrap();
        let output = OutputDir::open(dir.path()).unwrap();
        let mut log = Vec::new();
        let path = run(&OPTIONS, &output, &mut Reporter::new(&mut log)).unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (70, 40));
        assert!(pixels.iter().any(|channel| *channel > 128) && pixels.iter().any(|channel| *channel < 100));
        assert!(String::from_utf8(log).unwrap().ends_with("::progress 1.0000 done\n"));
    }

    #[test]
    fn the_picture_depends_on_the_seed_but_not_on_the_number_of_threads() {
        let render = |seed, workers| {
            let renderer = Renderer::new(&RenderOptions { seed, ..OPTIONS });
            renderer.render(workers, &mut Reporter::new(Vec::new())).unwrap()
        };
        assert_eq!(render(1, 1), render(1, 3));
        assert_ne!(render(1, 1), render(2, 1));
    }
}
