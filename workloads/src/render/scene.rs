//! What is on the picture: the spheres, the ground, the sky, and the camera which looks at them.
//!
//! The arrangement is drawn by lot from a seed. How light travels through it does not belong here.

use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::vector::Vec3;
use crate::number::real;

/// What a surface does with light.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Material {
    /// Scatters it in all directions.
    Matte,
    /// Throws it back, more or less clearly.
    Metal {
        /// 0 for a mirror.
        roughness: f32,
    },
    /// A matte body under a clear coat.
    Glazed,
    /// Lets it through, bent.
    Glass,
}

/// A ball.
#[derive(Clone, Copy, Debug)]
pub struct Sphere {
    /// Its middle.
    pub centre: Vec3,
    /// How large it is.
    pub radius: f32,
    /// The share of each colour of light that it keeps alive.
    pub colour: Vec3,
    /// What it is made of.
    pub material: Material,
}

/// A straight way of light, backwards: from the eye.
#[derive(Clone, Copy, Debug)]
pub struct Ray {
    /// Where it starts.
    pub origin: Vec3,
    /// Where it goes, of length one.
    pub direction: Vec3,
}

/// Where a ray meets a surface.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// How far from the start of the ray.
    pub distance: f32,
    /// The place.
    pub at: Vec3,
    /// The direction straight out of the body.
    pub normal: Vec3,
    /// What the surface is made of.
    pub material: Material,
    /// The colour of the surface.
    pub colour: Vec3,
}

/// Everything there is.
#[derive(Clone, Debug)]
pub struct Scene {
    spheres: Vec<Sphere>,
    /// Where the sun stands, of length one.
    pub sun: Vec3,
}

/// Nearer than this, a ray would only meet the surface it starts from.
const NEAREST: f32 = 1e-3;
const SMALL_SPHERES: usize = 46;
const GROUND: Vec3 = Vec3::new(0.62, 0.60, 0.585);

/// Colours which go well together.
const PALETTES: [[Vec3; 5]; 4] = [
    [
        Vec3::new(0.05, 0.22, 0.80),
        Vec3::new(0.95, 0.35, 0.12),
        Vec3::new(0.98, 0.70, 0.20),
        Vec3::new(0.80, 0.84, 0.88),
        Vec3::new(0.06, 0.48, 0.52),
    ],
    [
        Vec3::new(0.80, 0.10, 0.18),
        Vec3::new(0.96, 0.52, 0.40),
        Vec3::new(0.92, 0.80, 0.66),
        Vec3::new(0.10, 0.16, 0.34),
        Vec3::new(0.36, 0.56, 0.66),
    ],
    [
        Vec3::new(0.06, 0.42, 0.28),
        Vec3::new(0.62, 0.76, 0.24),
        Vec3::new(0.96, 0.86, 0.56),
        Vec3::new(0.86, 0.36, 0.20),
        Vec3::new(0.14, 0.26, 0.34),
    ],
    [
        Vec3::new(0.36, 0.14, 0.62),
        Vec3::new(0.90, 0.24, 0.50),
        Vec3::new(0.98, 0.62, 0.34),
        Vec3::new(0.88, 0.84, 0.92),
        Vec3::new(0.16, 0.42, 0.80),
    ],
];

impl Scene {
    /// The scene of a seed: three large spheres, and many small ones strewn around them.
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let palette = PALETTES.choose(&mut rng).unwrap_or(&PALETTES[0]);
        let heroes = [
            (Vec3::new(-2.15, 1.0, -0.6), Material::Glazed, palette[0]),
            (Vec3::new(0.0, 1.0, 0.2), Material::Glass, Vec3::new(0.97, 0.985, 0.98)),
            (Vec3::new(2.15, 1.0, -0.5), Material::Metal { roughness: 0.02 }, Vec3::new(0.93, 0.90, 0.86)),
        ];
        let mut spheres: Vec<Sphere> = heroes
            .into_iter()
            .map(|(centre, material, colour)| Sphere { centre, radius: 1.0, colour, material })
            .collect();
        // A small sphere which finds no free place after many tries is left out.
        for _ in 0..SMALL_SPHERES * 30 {
            if spheres.len() >= heroes.len() + SMALL_SPHERES {
                break;
            }
            let sphere = small_sphere(palette, &mut rng);
            if spheres.iter().all(|other| is_apart(&sphere, other)) {
                spheres.push(sphere);
            }
        }
        Self { spheres, sun: Vec3::new(-0.55, 0.62, 0.56).unit() }
    }

    /// The nearest surface that a ray meets.
    pub fn hit(&self, ray: &Ray) -> Option<Hit> {
        let mut nearest = f32::INFINITY;
        let mut found = None;
        for sphere in &self.spheres {
            if let Some(distance) = distance_to(sphere, ray).filter(|found| *found < nearest) {
                nearest = distance;
                found = Some(sphere);
            }
        }
        let ground = -ray.origin.y / ray.direction.y;
        if ground > NEAREST && ground < nearest {
            return Some(Hit {
                distance: ground,
                at: ray.origin + ray.direction * ground,
                normal: Vec3::new(0.0, 1.0, 0.0),
                material: Material::Matte,
                colour: GROUND,
            });
        }
        found.map(|sphere| {
            let at = ray.origin + ray.direction * nearest;
            let normal = (at - sphere.centre) * (1.0 / sphere.radius);
            Hit { distance: nearest, at, normal, material: sphere.material, colour: sphere.colour }
        })
    }

    /// How much light arrives along a ray that leaves for the sun. Glass takes some of it.
    pub fn clearness(&self, ray: &Ray) -> f32 {
        let mut clearness = 1.0;
        for sphere in &self.spheres {
            if distance_to(sphere, ray).is_some() {
                if sphere.material != Material::Glass {
                    return 0.0;
                }
                clearness *= 0.55;
            }
        }
        clearness
    }
}

fn small_sphere(palette: &[Vec3; 5], rng: &mut ChaCha8Rng) -> Sphere {
    let radius: f32 = rng.random_range(0.16..0.42);
    let centre = Vec3::new(rng.random_range(-4.8..4.8), radius, rng.random_range(-4.6..4.0));
    let colour = palette.choose(rng).copied().unwrap_or(Vec3::ONE);
    let (material, colour) = match rng.random_range(0..10) {
        0..4 => (Material::Matte, colour),
        4..7 => (Material::Glazed, colour),
        7..9 => (Material::Metal { roughness: rng.random_range(0.0..0.3) }, colour.mix(Vec3::ONE, 0.4)),
        _ => (Material::Glass, colour.mix(Vec3::ONE, 0.85)),
    };
    Sphere { centre, radius, colour, material }
}

fn is_apart(sphere: &Sphere, other: &Sphere) -> bool {
    (sphere.centre - other.centre).length() > sphere.radius + other.radius + 0.08
}

fn distance_to(sphere: &Sphere, ray: &Ray) -> Option<f32> {
    let offset = ray.origin - sphere.centre;
    let half = offset.dot(ray.direction);
    let under_root = half * half - offset.dot(offset) + sphere.radius * sphere.radius;
    if under_root < 0.0 {
        return None;
    }
    let root = under_root.sqrt();
    [-half - root, -half + root].into_iter().find(|distance| *distance > NEAREST)
}

/// A camera with a lens, so that what is nearer or farther than its focus gets blurred.
#[derive(Clone, Debug)]
pub struct Camera {
    origin: Vec3,
    corner: Vec3,
    across: Vec3,
    down: Vec3,
    lens_right: Vec3,
    lens_up: Vec3,
}

impl Camera {
    /// A camera which looks at the large spheres, for a picture of this size.
    pub fn new(width: usize, height: usize) -> Self {
        const LENS: f32 = 0.055;
        let origin = Vec3::new(0.9, 2.5, 8.6);
        let target = Vec3::new(0.0, 0.72, 0.0);
        let focus = (target - origin).length() - 0.6;
        let forward = (target - origin).unit();
        let right = forward.cross(Vec3::new(0.0, 1.0, 0.0)).unit();
        let up = right.cross(forward);
        let shape = real(width) / real(height.max(1));
        // The wider side of the picture always shows the same, so that narrow pictures fit too.
        let view_width = 2.0 * focus * 0.40 * shape.clamp(0.8, 1.6) / 1.2;
        let across = right * view_width;
        let down = -up * (view_width / shape);
        let corner = origin + forward * focus - across * 0.5 - down * 0.5;
        Self { origin, corner, across, down, lens_right: right * LENS, lens_up: up * LENS }
    }

    /// The ray for a place on the picture (0 to 1 across and down) through a point of the lens.
    pub fn ray(&self, across: f32, down: f32, lens: (f32, f32)) -> Ray {
        let origin = self.origin + self.lens_right * lens.0 + self.lens_up * lens.1;
        let target = self.corner + self.across * across + self.down * down;
        Ray { origin, direction: (target - origin).unit() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sphere_stands_in_another_one() {
        for seed in 0..20 {
            let scene = Scene::new(seed);
            assert!(scene.spheres.len() > 20);
            for (i, sphere) in scene.spheres.iter().enumerate() {
                assert!(scene.spheres[..i].iter().all(|other| is_apart(sphere, other)));
            }
        }
    }

    #[test]
    fn a_ray_downwards_meets_something_and_one_upwards_nothing() {
        let scene = Scene::new(1);
        let origin = Vec3::new(0.3, 30.0, 0.2);
        let down = Ray { origin, direction: Vec3::new(0.0, -1.0, 0.0) };
        let hit = scene.hit(&down).unwrap();
        assert!(hit.at.y > 1.0 && hit.material == Material::Glass);
        assert!(scene.hit(&Ray { origin, direction: Vec3::new(0.0, 1.0, 0.0) }).is_none());
    }
}
