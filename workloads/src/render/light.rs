//! Path tracing: light is followed from the camera back to the sun and the sky.
//!
//! Each path gives a random estimate of the light; the mean of many paths gives the picture.

use std::f32::consts::TAU;

use glam::Vec3;
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::scene::{Hit, Material, Ray, Scene};

/// Longer paths carry too little light to be visible.
const LONGEST_PATH: usize = 10;
/// The angular radius of the sun; a larger sun makes softer shadows.
const SUN_SIZE: f32 = 0.075;
const SUN_LIGHT: Vec3 = Vec3::new(2.5, 2.28, 1.95);
const HORIZON: Vec3 = Vec3::new(1.18, 1.17, 1.16);
const ZENITH: Vec3 = Vec3::new(0.22, 0.46, 0.95);
/// At this distance, the haze hides about two thirds of the ground.
const HAZE: f32 = 34.0;
const GLASS_INDEX: f32 = 1.5;

type Rng = Xoshiro256PlusPlus;

/// A random estimate of the light that arrives along a ray.
pub fn radiance(scene: &Scene, mut ray: Ray, rng: &mut Rng) -> Vec3 {
    let mut light = Vec3::ZERO;
    // The share of the light found from here on that reaches the camera.
    let mut share = Vec3::ONE;
    let mut sees_sun = true;
    for length in 0..LONGEST_PATH {
        let Some(hit) = scene.hit(&ray) else {
            return light + share * sky(scene, ray.direction, sees_sun);
        };
        if hit.material == Material::Matte && hit.distance > 4.0 {
            let clear = (-(hit.distance / HAZE).powi(2)).exp();
            light += share * HORIZON * (1.0 - clear);
            share *= clear;
        }
        match bounce(&ray, &hit, rng) {
            Bounce::Reflected { direction, kept } => {
                share *= kept;
                ray = Ray { origin: hit.at, direction };
            }
            Bounce::Scattered { direction } => {
                share *= hit.colour;
                light += share * sunlight(scene, &hit, rng);
                sees_sun = false;
                ray = Ray { origin: hit.at, direction };
            }
        }
        // Russian roulette: a dim path ends at random, and the surviving paths count for more.
        if length >= 3 {
            let survives = share.max_element().clamp(0.05, 0.95);
            if rng.random::<f32>() > survives {
                return light;
            }
            share /= survives;
        }
    }
    light
}

/// The continuation of a path from a surface.
enum Bounce {
    /// In a direction given by the surface. `kept` is the share of the light that goes on.
    Reflected { direction: Vec3, kept: Vec3 },
    /// In a random direction.
    Scattered { direction: Vec3 },
}

fn bounce(ray: &Ray, hit: &Hit, rng: &mut Rng) -> Bounce {
    match hit.material {
        Material::Matte => Bounce::Scattered { direction: scatter(hit.normal, rng) },
        Material::Metal { roughness } => {
            let blur = on_sphere(rng) * roughness;
            let direction = (ray.direction.reflect(hit.normal) + blur).normalize();
            // A blurred direction must not point into the sphere.
            let inwards = direction.dot(hit.normal).min(0.0);
            let direction = (direction - hit.normal * (2.0 * inwards)).normalize();
            Bounce::Reflected { direction, kept: hit.colour }
        }
        Material::Glazed => {
            let facing = (-ray.direction.dot(hit.normal)).clamp(0.0, 1.0);
            if rng.random::<f32>() < reflected_share(facing) {
                let direction = ray.direction.reflect(hit.normal);
                return Bounce::Reflected { direction, kept: Vec3::ONE };
            }
            Bounce::Scattered { direction: scatter(hit.normal, rng) }
        }
        Material::Glass => Bounce::Reflected { direction: through_glass(ray, hit, rng), kept: hit.colour },
    }
}

/// The share of light that a clear surface reflects (Schlick's approximation).
fn reflected_share(facing: f32) -> f32 {
    let straight = ((1.0 - GLASS_INDEX) / (1.0 + GLASS_INDEX)).powi(2);
    straight + (1.0 - straight) * (1.0 - facing).powi(5)
}

fn through_glass(ray: &Ray, hit: &Hit, rng: &mut Rng) -> Vec3 {
    let enters = ray.direction.dot(hit.normal) < 0.0;
    let (normal, ratio) = if enters { (hit.normal, 1.0 / GLASS_INDEX) } else { (-hit.normal, GLASS_INDEX) };
    let facing = (-ray.direction.dot(normal)).clamp(0.0, 1.0);
    let sideways = (ray.direction + normal * facing) * ratio;
    let forwards_squared = 1.0 - sideways.dot(sideways);
    // Out of glass, Schlick's approximation needs the angle outside.
    let angle = if enters { facing } else { forwards_squared.max(0.0).sqrt() };
    if forwards_squared <= 0.0 || rng.random::<f32>() < reflected_share(angle) {
        return ray.direction.reflect(normal);
    }
    (sideways - normal * forwards_squared.sqrt()).normalize()
}

/// A random direction away from a matte surface, with a density proportional to the cosine.
fn scatter(normal: Vec3, rng: &mut Rng) -> Vec3 {
    (normal + on_sphere(rng) * 0.999).normalize()
}

/// A random unit vector.
fn on_sphere(rng: &mut Rng) -> Vec3 {
    let height = rng.random::<f32>() * 2.0 - 1.0;
    let (sin, cos) = (rng.random::<f32>() * TAU).sin_cos();
    let radius = (1.0 - height * height).max(0.0).sqrt();
    Vec3::new(radius * cos, height, radius * sin)
}

/// A random point in the unit circle.
pub(super) fn in_circle(rng: &mut Rng) -> (f32, f32) {
    let radius = rng.random::<f32>().sqrt();
    let (sin, cos) = (rng.random::<f32>() * TAU).sin_cos();
    (radius * cos, radius * sin)
}

/// The light from a random point of the sun on a matte surface.
fn sunlight(scene: &Scene, hit: &Hit, rng: &mut Rng) -> Vec3 {
    let (right, up) = scene.sun.any_orthonormal_pair();
    let (x, y) = in_circle(rng);
    let direction = (scene.sun + right * (x * SUN_SIZE) + up * (y * SUN_SIZE)).normalize();
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
    HORIZON.lerp(ZENITH, direction.y.max(0.0).powf(0.6))
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
    fn flat_angles_reflect_more() {
        assert!((reflected_share(1.0) - 0.04).abs() < 1e-6);
        assert!(reflected_share(0.0) > 0.99);
    }

    #[test]
    fn scattered_light_leaves_the_surface() {
        let mut rng = Rng::seed_from_u64(1);
        let normal = Vec3::new(0.0, 1.0, 0.0);
        assert!((0..500).all(|_| scatter(normal, &mut rng).dot(normal) > 0.0));
    }
}
