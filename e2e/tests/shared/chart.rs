//! The images that the chart names, and where the scenarios on a cluster install it.

use anyhow::Result;
use slotmesh_cluster::{Cluster, images::Start};
use slotmesh_e2e::names::binary;

/// Namespace in which slotmesh is installed.
pub const SYSTEM: &str = "slotmesh-system";

/// Makes the images as `make images` does, but for the libraries: this build is linked statically.
pub fn make_images(cluster: &Cluster) -> Result<()> {
    let slotmesh = binary("slotmesh", "slotmesh")?;
    for (name, user) in [("operator", "65532:65532"), ("agent", "0:0")] {
        let start = Start {
            entrypoint: vec!["/slotmesh".into()],
            cmd: vec![name.into()],
            user: user.into(),
            ..Start::default()
        };
        let image = format!("slotmesh/{name}:{}", env!("CARGO_PKG_VERSION"));
        cluster.images().make(&image, &[(&slotmesh, "/slotmesh")], &start)?;
    }
    Ok(())
}
