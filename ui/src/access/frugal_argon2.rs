//! Argon2id that gives its memory back. glibc keeps a freed block of up to 32 MiB for later, one for each thread that
//! hashed, and the 19 MiB of a hash are such a block. A larger block is mapped by itself, and unmapped when it is
//! freed. So this file asks for a larger one, and uses its beginning. All else is the work of the crate `argon2`.

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::{
        CustomizedPasswordHasher, PasswordHasher, Result,
        phc::{Output, ParamsString, PasswordHash, Salt},
    },
};

/// The size of the block that is asked for, above the 32 MiB of `DEFAULT_MMAP_THRESHOLD_MAX` (mallopt(3)).
const MAPPED: usize = 33 << 20;

/// Argon2id with the recommended parameters.
pub(super) struct FrugalArgon2;

impl CustomizedPasswordHasher<PasswordHash> for FrugalArgon2 {
    type Params = Params;

    fn hash_password_customized(
        &self,
        password: &[u8],
        salt: &[u8],
        algorithm: Option<&str>,
        version: Option<u32>,
        params: Params,
    ) -> Result<PasswordHash> {
        let algorithm = algorithm.map(Algorithm::try_from).transpose()?.unwrap_or_default();
        let version = version.map(Version::try_from).transpose()?.unwrap_or_default();
        let salt = Salt::new(salt)?;
        let mut output = vec![0; params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN)];
        let mut memory = Vec::with_capacity(params.block_count().max(MAPPED / Block::SIZE));
        memory.resize(params.block_count(), Block::new());
        let argon2 = Argon2::new(algorithm, version, params.clone());
        argon2.hash_password_into_with_memory(password, &salt, &mut output, &mut memory)?;
        Ok(PasswordHash {
            algorithm: algorithm.ident(),
            version: Some(version.into()),
            params: ParamsString::try_from(&params)?,
            salt: Some(salt),
            hash: Some(Output::new(&output)?),
        })
    }
}

impl PasswordHasher<PasswordHash> for FrugalArgon2 {
    fn hash_password_with_salt(&self, password: &[u8], salt: &[u8]) -> Result<PasswordHash> {
        self.hash_password_customized(password, salt, None, None, Params::default())
    }
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::PasswordVerifier as _;

    use super::*;

    #[test]
    fn the_hashes_are_those_of_the_library() {
        let salt = b"some salt of 16b";
        let own = FrugalArgon2.hash_password_with_salt(b"correct horse", salt).unwrap();
        let library = Argon2::default().hash_password_with_salt(b"correct horse", salt).unwrap();
        assert_eq!(own, library);
        assert!(FrugalArgon2.verify_password(b"correct horse", &library).is_ok());
        assert!(FrugalArgon2.verify_password(b"wrong horse", &library).is_err());
    }
}
