//! Path tracing: light is followed from the camera back to the sun and the sky.
//!
//! Each path gives a random estimate of the light of a pixel, and the pixel shows the mean of many paths.

use std::f32::consts::TAU;

use glam::Vec3;
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::scene::{Hit, Material, Ray, Scene};

/// The maximum number of surfaces on a path. Longer paths carry too little light to be visible.
const MAX_PATH_LENGTH: usize = 10;
/// The angular radius of the sun, in radians. A larger sun makes softer shadows.
const SUN_RADIUS: f32 = 0.075;
// Light of the sun, of the sky at the horizon, and of the sky overhead: red, green and blue.
const SUN_LIGHT: Vec3 = Vec3::new(2.5, 2.28, 1.95);
const HORIZON: Vec3 = Vec3::new(1.18, 1.17, 1.16);
const ZENITH: Vec3 = Vec3::new(0.22, 0.46, 0.95);
/// At this distance, the haze hides about two thirds of a matte surface, such as the ground.
const HAZE_DISTANCE: f32 = 34.0;
/// The refractive index of glass.
const REFRACTIVE_INDEX: f32 = 1.5;

type Rng = Xoshiro256PlusPlus;

/// A random estimate of the light that arrives along a ray.
pub fn radiance(scene: &Scene, mut ray: Ray, rng: &mut Rng) -> Vec3 {
    let mut light = Vec3::ZERO;
    // The share of the light at the current end of the path that reaches the camera.
    let mut throughput = Vec3::ONE;
    // False after a matte surface: `sunlight` has then added the light of the sun, which must not count twice.
    let mut sees_sun = true;
    for length in 0..MAX_PATH_LENGTH {
        let Some(hit) = scene.hit(&ray) else {
            return light + throughput * sky(scene, ray.direction, sees_sun);
        };
        if hit.material == Material::Matte && hit.distance > 4.0 {
            let haze_transmittance = (-(hit.distance / HAZE_DISTANCE).powi(2)).exp();
            light += throughput * HORIZON * (1.0 - haze_transmittance);
            throughput *= haze_transmittance;
        }
        match bounce(&ray, &hit, rng) {
            Bounce::Reflected { direction, attenuation } => {
                throughput *= attenuation;
                ray = Ray { origin: hit.at, direction };
            }
            Bounce::Scattered { direction } => {
                throughput *= hit.colour;
                light += throughput * sunlight(scene, &hit, rng);
                sees_sun = false;
                ray = Ray { origin: hit.at, direction };
            }
        }
        // Russian roulette: a dim path can end at random. The remaining paths count for more, so the mean stays
        // correct.
        if length >= 3 {
            let survival_probability = throughput.max_element().clamp(0.05, 0.95);
            if rng.random::<f32>() > survival_probability {
                return light;
            }
            throughput /= survival_probability;
        }
    }
    light
}

/// The continuation of a path from a surface.
enum Bounce {
    /// The path goes on in a direction that the surface determines. `attenuation` is the share of red, green and blue
    /// light that goes on.
    Reflected { direction: Vec3, attenuation: Vec3 },
    /// The path goes on in a random direction.
    Scattered { direction: Vec3 },
}

fn bounce(ray: &Ray, hit: &Hit, rng: &mut Rng) -> Bounce {
    match hit.material {
        Material::Matte => Bounce::Scattered { direction: scatter(hit.normal, rng) },
        Material::Metal { roughness } => {
            let blur = random_unit_vector(rng) * roughness;
            let direction = (ray.direction.reflect(hit.normal) + blur).normalize();
            // If the blurred direction points into the sphere, it is mirrored at the surface.
            let inwards = direction.dot(hit.normal).min(0.0);
            let direction = (direction - hit.normal * (2.0 * inwards)).normalize();
            Bounce::Reflected { direction, attenuation: hit.colour }
        }
        Material::Glazed => {
            let cosine = (-ray.direction.dot(hit.normal)).clamp(0.0, 1.0);
            if rng.random::<f32>() < reflectance(cosine) {
                let direction = ray.direction.reflect(hit.normal);
                return Bounce::Reflected { direction, attenuation: Vec3::ONE };
            }
            Bounce::Scattered { direction: scatter(hit.normal, rng) }
        }
        Material::Glass => Bounce::Reflected { direction: through_glass(ray, hit, rng), attenuation: hit.colour },
    }
}

/// The share of light that a surface of glass reflects, by Schlick's approximation. `cosine` is the cosine of the angle
/// between the ray and the surface normal.
fn reflectance(cosine: f32) -> f32 {
    let straight = ((1.0 - REFRACTIVE_INDEX) / (1.0 + REFRACTIVE_INDEX)).powi(2);
    straight + (1.0 - straight) * (1.0 - cosine).powi(5)
}

/// The direction in which a ray leaves a surface of glass: reflected or refracted, by chance.
fn through_glass(ray: &Ray, hit: &Hit, rng: &mut Rng) -> Vec3 {
    let enters = ray.direction.dot(hit.normal) < 0.0;
    let (normal, ratio) = if enters { (hit.normal, 1.0 / REFRACTIVE_INDEX) } else { (-hit.normal, REFRACTIVE_INDEX) };
    let cosine = (-ray.direction.dot(normal)).clamp(0.0, 1.0);
    let sideways = (ray.direction + normal * cosine) * ratio;
    let forwards_squared = 1.0 - sideways.dot(sideways);
    // Schlick's approximation needs the cosine of the angle outside the glass.
    let outer_cosine = if enters { cosine } else { forwards_squared.max(0.0).sqrt() };
    if forwards_squared <= 0.0 || rng.random::<f32>() < reflectance(outer_cosine) {
        return ray.direction.reflect(normal);
    }
    (sideways - normal * forwards_squared.sqrt()).normalize()
}

/// A random direction away from a matte surface. The probability of a direction is proportional to the cosine of its
/// angle to the surface normal.
fn scatter(normal: Vec3, rng: &mut Rng) -> Vec3 {
    (normal + random_unit_vector(rng) * 0.999).normalize()
}

/// A random unit vector.
fn random_unit_vector(rng: &mut Rng) -> Vec3 {
    let height = rng.random::<f32>() * 2.0 - 1.0;
    let (sin, cos) = (rng.random::<f32>() * TAU).sin_cos();
    let radius = (1.0 - height * height).max(0.0).sqrt();
    Vec3::new(radius * cos, height, radius * sin)
}

/// A random point in the unit circle.
pub(super) fn random_in_circle(rng: &mut Rng) -> (f32, f32) {
    let radius = rng.random::<f32>().sqrt();
    let (sin, cos) = (rng.random::<f32>() * TAU).sin_cos();
    (radius * cos, radius * sin)
}

/// The light that arrives on a matte surface from a random point of the sun. Zero in the shadow.
fn sunlight(scene: &Scene, hit: &Hit, rng: &mut Rng) -> Vec3 {
    let (right, up) = scene.sun.any_orthonormal_pair();
    let (x, y) = random_in_circle(rng);
    let direction = (scene.sun + right * (x * SUN_RADIUS) + up * (y * SUN_RADIUS)).normalize();
    let cosine = direction.dot(hit.normal);
    if cosine <= 0.0 {
        return Vec3::ZERO;
    }
    let transmittance = scene.transmittance(&Ray { origin: hit.at, direction });
    SUN_LIGHT * (cosine * transmittance)
}

/// The light of the sky from a direction. With `sees_sun`, the sky contains the sun.
fn sky(scene: &Scene, direction: Vec3, sees_sun: bool) -> Vec3 {
    if sees_sun && direction.dot(scene.sun) > SUN_RADIUS.cos() {
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
            let light = radiance(&scene, Ray { origin, direction: random_unit_vector(&mut rng) }, &mut rng);
            for channel in [light.x, light.y, light.z] {
                assert!(channel.is_finite() && channel >= 0.0);
            }
        }
    }

    #[test]
    fn glass_reflects_more_light_at_flat_angles() {
        assert!((reflectance(1.0) - 0.04).abs() < 1e-6);
        assert!(reflectance(0.0) > 0.99);
    }

    #[test]
    fn scattered_light_leaves_the_surface() {
        let mut rng = Rng::seed_from_u64(1);
        let normal = Vec3::new(0.0, 1.0, 0.0);
        assert!((0..500).all(|_| scatter(normal, &mut rng).dot(normal) > 0.0));
    }
}
