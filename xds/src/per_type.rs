//! One value for each resource type, without a map and without an "absent" case.

use std::ops::{Index, IndexMut};

use crate::ResourceType;

/// One `T` for each [`ResourceType`], indexed by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerType<T>([T; ResourceType::ALL.len()]);

impl<T> PerType<T> {
    /// Makes the value of each type.
    pub fn from_fn(make: impl FnMut(ResourceType) -> T) -> Self {
        Self(ResourceType::ALL.map(make))
    }

    /// The values with their types, in make-before-break order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (ResourceType, &T)> {
        ResourceType::ALL.into_iter().zip(&self.0)
    }

    /// The values with their types, in make-before-break order, to change them.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (ResourceType, &mut T)> {
        ResourceType::ALL.into_iter().zip(&mut self.0)
    }
}

impl<T> Index<ResourceType> for PerType<T> {
    type Output = T;

    fn index(&self, ty: ResourceType) -> &T {
        &self.0[ty as usize]
    }
}

impl<T> IndexMut<ResourceType> for PerType<T> {
    fn index_mut(&mut self, ty: ResourceType) -> &mut T {
        &mut self.0[ty as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_its_own_value() {
        let values = PerType::from_fn(ResourceType::as_str);
        for ty in ResourceType::ALL {
            assert_eq!(values[ty], ty.as_str());
        }
        assert!(values.iter().map(|(ty, _)| ty).eq(ResourceType::ALL));
    }
}
