//! How long the kernel takes for a great service proxy: SERVICES entries in one map, two endpoints for each in another, one batch.
//!
//! ```text
//! cargo run --release -p linux-net --example nft_speed -- 10000
//! ```

use std::{io::Write as _, time::Instant};

use linux_net::nft::{
    Batch, Ct, Element, Expr, Family, Field, Meta, Nft, NumgenMode, Op, Set, Spec, Table, Type, Value,
};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let services: u32 = std::env::args().nth(1).map_or(Ok(10_000), |number| number.parse())?;
    let table = Table::new(Family::Ip, "speed");
    let fronts = Set::map(
        &table,
        "fronts",
        Spec::types([Type::Ipv4Addr, Type::InetProto, Type::InetService]),
        Spec::types([Type::Mark]),
    );
    let random = Expr::Numgen { mode: NumgenMode::Random, modulus: 65536, offset: 0 };
    let endpoints = Set::map(
        &table,
        "endpoints",
        Spec::type_of([Ct::Mark.into(), Meta::L4proto.into(), random]),
        Spec::type_of([Field::IpDaddr.into(), Field::ThDport.into()]),
    );
    let address = |network: u32, number: u32| Value::Ipv4((network + number).into());
    let tcp = || Value::Protocol(6);

    let start = Instant::now();
    let front = |number| {
        let key = [address(0xac10_0000, number), tcp(), Value::Port(80)];
        Element::map(key, [Value::Mark(0x0020_0000 | number)])
    };
    let endpoint = |number: u32| {
        let key = [Value::Mark(number / 2), tcp(), Value::Integer(number % 2)];
        Element::map(key, [address(0x0b00_0000, number), Value::Port(8080)])
    };
    let batch = Batch(vec![
        Op::AddTable(table),
        Op::AddSet(fronts.clone()),
        Op::AddSet(endpoints.clone()),
        Op::AddElements { set: fronts.clone(), elements: (0..services).map(front).collect() },
        Op::AddElements { set: endpoints, elements: (0..2 * services).map(endpoint).collect() },
    ]);
    let described = start.elapsed();
    let mut nft = Nft::open()?;
    let start = Instant::now();
    nft.commit(&batch)?;
    let committed = start.elapsed();
    let start = Instant::now();
    let found = nft.elements(&fronts)?.len();
    writeln!(
        std::io::stdout(),
        "{services} services: described in {described:.1?}, encoded and committed in {committed:.1?}, {found} read back in {:.1?}",
        start.elapsed(),
    )?;
    Ok(())
}
