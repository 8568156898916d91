//! The scene: the spheres, the ground, the sun, and the camera.
//!
//! A seed determines the arrangement and the colours.

use glam::Vec3;
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::number::to_f32;

/// The way a surface reflects light.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Material {
    /// Scatters light in all directions.
    Matte,
    /// Reflects light like a polished metal.
    Metal {
        /// 0 for a perfect mirror, 1 for a very rough surface.
        roughness: f32,
    },
    /// Reflects a part of the light by its clear coat, and scatters the rest.
    Glazed,
    /// Refracts light.
    Glass,
}

/// A sphere.
#[derive(Clone, Copy, Debug)]
pub struct Sphere {
    /// The centre.
    pub centre: Vec3,
    /// The radius.
    pub radius: f32,
    /// The reflected share of red, green and blue light.
    pub colour: Vec3,
    /// The material.
    pub material: Material,
}

/// A ray of light, followed backwards from the camera.
#[derive(Clone, Copy, Debug)]
pub struct Ray {
    /// The start.
    pub origin: Vec3,
    /// The direction, a unit vector.
    pub direction: Vec3,
}

/// The point where a ray meets a surface.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// The distance from the start of the ray.
    pub distance: f32,
    /// The position.
    pub at: Vec3,
    /// The surface normal, a unit vector that points outwards.
    pub normal: Vec3,
    /// The material of the surface.
    pub material: Material,
    /// The colour of the surface.
    pub colour: Vec3,
}

/// The spheres, which depend on the seed, and the direction of the sun, which does not. The ground is the plane y = 0.
#[derive(Clone, Debug)]
pub struct Scene {
    spheres: Vec<Sphere>,
    /// The direction of the sun, a unit vector.
    pub sun: Vec3,
}

/// The minimum distance of a hit. Because of rounding, a ray could otherwise hit the surface on which the ray starts.
const MIN_DISTANCE: f32 = 1e-3;
const SMALL_SPHERES: usize = 46;
const GROUND_COLOUR: Vec3 = Vec3::new(0.62, 0.60, 0.585);

/// Sets of matching colours. Each scene uses one set.
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
    /// The scene of a seed: three large spheres, and up to 46 small spheres around them.
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let palette = PALETTES.choose(&mut rng).unwrap_or(&PALETTES[0]);
        let large_spheres = [
            (Vec3::new(-2.15, 1.0, -0.6), Material::Glazed, palette[0]),
            (Vec3::new(0.0, 1.0, 0.2), Material::Glass, Vec3::new(0.97, 0.985, 0.98)),
            (Vec3::new(2.15, 1.0, -0.5), Material::Metal { roughness: 0.02 }, Vec3::new(0.93, 0.90, 0.86)),
        ];
        let mut spheres: Vec<Sphere> = large_spheres
            .into_iter()
            .map(|(centre, material, colour)| Sphere { centre, radius: 1.0, colour, material })
            .collect();
        // The number of tries is bounded, so a crowded scene has fewer small spheres.
        for _ in 0..SMALL_SPHERES * 30 {
            if spheres.len() >= large_spheres.len() + SMALL_SPHERES {
                break;
            }
            let sphere = small_sphere(palette, &mut rng);
            if spheres.iter().all(|other| is_apart(&sphere, other)) {
                spheres.push(sphere);
            }
        }
        Self { spheres, sun: Vec3::new(-0.55, 0.62, 0.56).normalize() }
    }

    /// The nearest hit of a ray; `None` if the ray hits nothing.
    pub fn hit(&self, ray: &Ray) -> Option<Hit> {
        let mut nearest = f32::INFINITY;
        let mut nearest_sphere = None;
        for sphere in &self.spheres {
            if let Some(distance) = distance_to(sphere, ray).filter(|distance| *distance < nearest) {
                nearest = distance;
                nearest_sphere = Some(sphere);
            }
        }
        let ground_distance = -ray.origin.y / ray.direction.y;
        if ground_distance > MIN_DISTANCE && ground_distance < nearest {
            return Some(Hit {
                distance: ground_distance,
                at: ray.origin + ray.direction * ground_distance,
                normal: Vec3::new(0.0, 1.0, 0.0),
                material: Material::Matte,
                colour: GROUND_COLOUR,
            });
        }
        nearest_sphere.map(|sphere| {
            let at = ray.origin + ray.direction * nearest;
            let normal = (at - sphere.centre) * (1.0 / sphere.radius);
            Hit { distance: nearest, at, normal, material: sphere.material, colour: sphere.colour }
        })
    }

    /// The share of sunlight that arrives along a ray towards the sun. Glass absorbs a part of the light.
    pub fn transmittance(&self, ray: &Ray) -> f32 {
        let mut transmittance = 1.0;
        for sphere in &self.spheres {
            if distance_to(sphere, ray).is_some() {
                if sphere.material != Material::Glass {
                    return 0.0;
                }
                transmittance *= 0.55;
            }
        }
        transmittance
    }
}

fn small_sphere(palette: &[Vec3; 5], rng: &mut ChaCha8Rng) -> Sphere {
    let radius: f32 = rng.random_range(0.16..0.42);
    let centre = Vec3::new(rng.random_range(-4.8..4.8), radius, rng.random_range(-4.6..4.0));
    let colour = palette.choose(rng).copied().unwrap_or(Vec3::ONE);
    let (material, colour) = match rng.random_range(0..10) {
        0..4 => (Material::Matte, colour),
        4..7 => (Material::Glazed, colour),
        7..9 => (Material::Metal { roughness: rng.random_range(0.0..0.3) }, colour.lerp(Vec3::ONE, 0.4)),
        _ => (Material::Glass, colour.lerp(Vec3::ONE, 0.85)),
    };
    Sphere { centre, radius, colour, material }
}

/// True if there is a gap between two spheres.
fn is_apart(sphere: &Sphere, other: &Sphere) -> bool {
    (sphere.centre - other.centre).length() > sphere.radius + other.radius + 0.08
}

/// The distance along a ray to its nearest hit of a sphere.
fn distance_to(sphere: &Sphere, ray: &Ray) -> Option<f32> {
    // |origin + t · direction − centre|² = radius² is a quadratic equation in t: the direction is a unit vector.
    let offset = ray.origin - sphere.centre;
    let half_b = offset.dot(ray.direction);
    let discriminant = half_b * half_b - offset.dot(offset) + sphere.radius * sphere.radius;
    if discriminant < 0.0 {
        return None;
    }
    let root = discriminant.sqrt();
    [-half_b - root, -half_b + root].into_iter().find(|distance| *distance > MIN_DISTANCE)
}

/// A camera with a lens. Objects nearer or farther than the focus are blurred.
#[derive(Clone, Debug)]
pub struct Camera {
    origin: Vec3,
    top_left: Vec3,
    picture_width: Vec3,
    picture_height: Vec3,
    lens_right: Vec3,
    lens_up: Vec3,
}

impl Camera {
    /// A camera that looks at the large spheres, for a picture of the given size.
    pub fn new(width: usize, height: usize) -> Self {
        const LENS_RADIUS: f32 = 0.055;
        let origin = Vec3::new(0.9, 2.5, 8.6);
        let target = Vec3::new(0.0, 0.72, 0.0);
        // The plane in which things are sharp: a little before the target, where the large spheres are.
        let focus_distance = (target - origin).length() - 0.6;
        let forward = (target - origin).normalize();
        let right = forward.cross(Vec3::new(0.0, 1.0, 0.0)).normalize();
        let up = right.cross(forward);
        let aspect_ratio = to_f32(width) / to_f32(height.max(1));
        // The view is wider in a wide picture, within bounds: a narrow picture still shows the large spheres, and a
        // very wide picture is less high instead.
        let view_width = 2.0 * focus_distance * 0.40 * aspect_ratio.clamp(0.8, 1.6) / 1.2;
        let picture_width = right * view_width;
        let picture_height = -up * (view_width / aspect_ratio);
        let top_left = origin + forward * focus_distance - picture_width * 0.5 - picture_height * 0.5;
        Self {
            origin,
            top_left,
            picture_width,
            picture_height,
            lens_right: right * LENS_RADIUS,
            lens_up: up * LENS_RADIUS,
        }
    }

    /// The ray from a point of the lens to a position on the picture. `x` and `y` are 0 to 1, from the top left; `lens`
    /// is a point in the unit circle.
    pub fn ray(&self, x: f32, y: f32, lens: (f32, f32)) -> Ray {
        let origin = self.origin + self.lens_right * lens.0 + self.lens_up * lens.1;
        let target = self.top_left + self.picture_width * x + self.picture_height * y;
        Ray { origin, direction: (target - origin).normalize() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spheres_do_not_overlap() {
        for seed in 0..20 {
            let scene = Scene::new(seed);
            assert!(scene.spheres.len() > 20);
            for (i, sphere) in scene.spheres.iter().enumerate() {
                assert!(scene.spheres[..i].iter().all(|other| is_apart(sphere, other)));
            }
        }
    }

    #[test]
    fn a_ray_downwards_hits_and_a_ray_upwards_does_not() {
        let scene = Scene::new(1);
        let origin = Vec3::new(0.3, 30.0, 0.2);
        let down = Ray { origin, direction: Vec3::new(0.0, -1.0, 0.0) };
        let hit = scene.hit(&down).unwrap();
        assert!(hit.at.y > 1.0 && hit.material == Material::Glass);
        assert!(scene.hit(&Ray { origin, direction: Vec3::new(0.0, 1.0, 0.0) }).is_none());
    }
}
