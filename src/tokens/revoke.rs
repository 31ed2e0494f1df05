//! Revoking a token: every gateway refuses it at once.

use super::life::MAX_LIFE;
use super::{FindError, Tokens};
use crate::record::key;

impl Tokens {
    /// Deletes the record of `id`, or revokes a token that needs no record for as long as a token may live. A record
    /// of the configuration can only be taken out there.
    ///
    /// # Errors
    /// [`FindError::Configured`] and [`FindError::Unknown`] when there is nothing to revoke here.
    pub async fn revoke(&self, id: &str) -> Result<(), FindError> {
        if self.is_configured(id) {
            return Err(FindError::Configured { id: id.to_owned() });
        }
        let unknown = || FindError::Unknown { id: id.to_owned() };
        let store = self.store().ok_or_else(unknown)?;
        let deleted = store.delete(id).await?;
        if self.claims_stand() && !key::is_hash(id) {
            store.revoke(id, MAX_LIFE).await?;
        } else if !deleted {
            return Err(unknown());
        }
        Ok(())
    }
}
