//! How light travels: paths from the eye back to the sun and the sky.
//!
//! The light along each path is estimated by chance, so the mean of many paths is the picture.
//! What is on the picture is told in `scene`.

use std::f32::consts::TAU;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::scene::{Hit, Material, Ray, Scene};
use super::vector::Vec3;

/// After so many surfaces, a path carries too little light to matter.
const LONGEST_PATH: usize = 10;
/// How large the sun looks; a larger one makes softer shadows.
const SUN_SIZE: f32 = 0.075;
const SUN_LIGHT: Vec3 = Vec3::new(2.5, 2.28, 1.95);
const HORIZON: Vec3 = Vec3::new(1.18, 1.17, 1.16);
const ZENITH: Vec3 = Vec3::new(0.22, 0.46, 0.95);
/// At this distance, about two thirds of the ground is lost in haze.
const HAZE: f32 = 34.0;
const GLASS_INDEX: f32 = 1.5;

type Rng = Xoshiro256PlusPlus;

/// An estimate of the light that arrives along a ray.
pub fn radiance(scene: &Scene, mut ray: Ray, rng: &mut Rng) -> Vec3 {
    let mut light = Vec3::ZERO;
    // How much of the light found from here on reaches the eye.
    let mut share = Vec3::ONE;
    let mut sees_sun = true;
    for length in 0..LONGEST_PATH {
        let Some(hit) = scene.hit(&ray) else {
            return light + share * sky(scene, ray.direction, sees_sun);
        };
        if hit.material == Material::Matte && hit.distance > 4.0 {
            let clear = (-(hit.distance / HAZE).powi(2)).exp();
            light += share * HORIZON * (1.0 - clear);
            share = share * clear;
        }
        match bounce(&ray, &hit, rng) {
            Bounce::Mirrored { direction, kept } => {
                share = share * kept;
                ray = Ray { origin: hit.at, direction };
            }
            Bounce::Scattered { direction } => {
                share = share * hit.colour;
                light += share * sunlight(scene, &hit, rng);
                sees_sun = false;
                ray = Ray { origin: hit.at, direction };
            }
        }
        // Dim paths end by lot; the others carry on for them.
        if length >= 3 {
            let survives = share.greatest().clamp(0.05, 0.95);
            if rng.random::<f32>() > survives {
                return light;
            }
            share = share * (1.0 / survives);
        }
    }
    light
}

/// Where a path goes on from a surface.
enum Bounce {
    /// In one direction that the surface prescribes.
    Mirrored { direction: Vec3, kept: Vec3 },
    /// In any direction.
    Scattered { direction: Vec3 },
}

fn bounce(ray: &Ray, hit: &Hit, rng: &mut Rng) -> Bounce {
    match hit.material {
        Material::Matte => Bounce::Scattered { direction: scatter(hit.normal, rng) },
        Material::Metal { roughness } => {
            let blur = on_sphere(rng) * roughness;
            let direction = (ray.direction.reflected(hit.normal) + blur).unit();
            // A blurred direction must not lead into the body.
            let inwards = direction.dot(hit.normal).min(0.0);
            let direction = (direction - hit.normal * (2.0 * inwards)).unit();
            Bounce::Mirrored { direction, kept: hit.colour }
        }
        Material::Glazed => {
            let facing = (-ray.direction.dot(hit.normal)).clamp(0.0, 1.0);
            if rng.random::<f32>() < mirrored_share(facing) {
                let direction = ray.direction.reflected(hit.normal);
                return Bounce::Mirrored { direction, kept: Vec3::ONE };
            }
            Bounce::Scattered { direction: scatter(hit.normal, rng) }
        }
        Material::Glass => Bounce::Mirrored { direction: through_glass(ray, hit, rng), kept: hit.colour },
    }
}

/// The share of light that a clear surface throws back (the approximation by Schlick).
fn mirrored_share(facing: f32) -> f32 {
    let straight = ((1.0 - GLASS_INDEX) / (1.0 + GLASS_INDEX)).powi(2);
    straight + (1.0 - straight) * (1.0 - facing).powi(5)
}

fn through_glass(ray: &Ray, hit: &Hit, rng: &mut Rng) -> Vec3 {
    let enters = ray.direction.dot(hit.normal) < 0.0;
    let (normal, ratio) = if enters { (hit.normal, 1.0 / GLASS_INDEX) } else { (-hit.normal, GLASS_INDEX) };
    let facing = (-ray.direction.dot(normal)).clamp(0.0, 1.0);
    let sideways = (ray.direction + normal * facing) * ratio;
    let forwards_squared = 1.0 - sideways.dot(sideways);
    // On the way out, the flatter angle outside decides.
    let angle = if enters { facing } else { forwards_squared.max(0.0).sqrt() };
    if forwards_squared <= 0.0 || rng.random::<f32>() < mirrored_share(angle) {
        return ray.direction.reflected(normal);
    }
    (sideways - normal * forwards_squared.sqrt()).unit()
}

/// A random direction out of a matte surface; steep ones are more likely.
fn scatter(normal: Vec3, rng: &mut Rng) -> Vec3 {
    (normal + on_sphere(rng) * 0.999).unit()
}

fn on_sphere(rng: &mut Rng) -> Vec3 {
    let height = rng.random::<f32>() * 2.0 - 1.0;
    let (sin, cos) = (rng.random::<f32>() * TAU).sin_cos();
    let radius = (1.0 - height * height).max(0.0).sqrt();
    Vec3::new(radius * cos, height, radius * sin)
}

/// A random point in a circle of radius one.
pub(super) fn in_circle(rng: &mut Rng) -> (f32, f32) {
    let radius = rng.random::<f32>().sqrt();
    let (sin, cos) = (rng.random::<f32>() * TAU).sin_cos();
    (radius * cos, radius * sin)
}

/// What the sun gives to a matte surface, seen through a random point of the sun.
fn sunlight(scene: &Scene, hit: &Hit, rng: &mut Rng) -> Vec3 {
    let (right, up) = scene.sun.basis();
    let (x, y) = in_circle(rng);
    let direction = (scene.sun + right * (x * SUN_SIZE) + up * (y * SUN_SIZE)).unit();
    let facing = direction.dot(hit.normal);
    if facing <= 0.0 {
        return Vec3::ZERO;
    }
    let clearness = scene.clearness(&Ray { origin: hit.at, direction });
    SUN_LIGHT * (facing * clearness)
}

fn sky(scene: &Scene, direction: Vec3, sees_sun: bool) -> Vec3 {
    if sees_sun && direction.dot(scene.sun) > SUN_SIZE.cos() {
        return SUN_LIGHT * 6.0;
    }
    HORIZON.mix(ZENITH, direction.y.max(0.0).powf(0.6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn light_is_finite_and_never_negative() {
        let scene = Scene::new(3);
        let mut rng = Rng::seed_from_u64(1);
        for _ in 0..2000 {
            let origin = Vec3::new(0.0, 3.0, 8.0);
            let light = radiance(&scene, Ray { origin, direction: on_sphere(&mut rng) }, &mut rng);
            for part in [light.x, light.y, light.z] {
                assert!(part.is_finite() && part >= 0.0);
            }
        }
    }

    #[test]
    fn flat_angles_mirror_more() {
        assert!((mirrored_share(1.0) - 0.04).abs() < 1e-6);
        assert!(mirrored_share(0.0) > 0.99);
    }

    #[test]
    fn scattered_light_leaves_the_surface() {
        let mut rng = Rng::seed_from_u64(1);
        let normal = Vec3::new(0.0, 1.0, 0.0);
        assert!((0..500).all(|_| scatter(normal, &mut rng).dot(normal) > 0.0));
    }
}
