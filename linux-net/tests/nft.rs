//! A ruleset is the same whether we commit it, or `nft` reads what we print.

#[path = "nft/everything.rs"]
mod everything;
#[path = "nft/layout.rs"]
mod layout;

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use linux_net::{
    NetNs,
    nft::{
        self, Batch, Chain, ChainKind, CmpOp, Ct, Element, Expr, Family, Field, Hook, HookPoint, Nft, NumgenMode, Op,
        Priority, Reject, Rule, Set, Spec, Statement, Table, Type, Value,
    },
    process::CommandNamespaceExt,
    testing::enter_sandbox,
};

/// Runs `nft` in a namespace, with a text on its standard input.
fn nft(ns: &NetNs, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .in_netns(ns)
        .spawn()?;
    child.stdin.take().expect("it is piped").write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft {arguments:?}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Commits a batch in one namespace, lets `nft` load its text in another, and returns what `nft` lists in both, which must be the same.
fn commit_both_ways(batch: &Batch) -> Result<String> {
    let (ours, theirs) = (NetNs::create("ours")?, NetNs::create("theirs")?);
    Nft::open_in(&ours)?.commit(batch)?;
    nft(&theirs, &["-c", "-f", "-"], &batch.to_string())?;
    nft(&theirs, &["-f", "-"], &batch.to_string())?;
    let list = |ns| nft(ns, &["list", "ruleset"], "").map(|listed| without_ages(&listed));
    let (ours, theirs) = (list(&ours)?, list(&theirs)?);
    assert_eq!(ours, theirs);
    Ok(ours)
}

/// Leaves out how long an element has still to live.
fn without_ages(listed: &str) -> String {
    let mut words = listed.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "expires" {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

#[test]
fn the_service_proxy_ruleset_lists_as_nft_loads_it() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let listed = commit_both_ways(&layout::batch())?;
    let original = NetNs::create("original")?;
    nft(&original, &["-f", "-"], include_str!("nft/service-proxy.nft"))?;
    assert_eq!(listed, nft(&original, &["list", "ruleset"], "")?);
    Ok(())
}

#[test]
fn elements_read_back_as_they_were_written() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    layout::batch().commit()?;
    let mut nft = Nft::open()?;
    for (set, mut elements) in layout::sets() {
        let mut found = nft.elements(&set)?;
        found.sort();
        elements.sort();
        assert_eq!(found, elements, "{}", set.name);
    }
    assert_eq!(nft.tables()?, [layout::table()]);
    let chains = nft.chains(&layout::table())?;
    assert_eq!(chains.len(), 11);
    assert_eq!(chains[0].chain.hook.as_ref().map(|hook| hook.priority), Some(Priority::DSTNAT));
    assert_eq!(nft.rules(&layout::table())?.len(), 25);
    assert_eq!(nft.sets(&layout::table())?.len(), 11);
    assert!(nft::table_exists(&layout::table())?);
    assert!(!nft::table_exists(&Table::new(Family::Ip6, "kproxy"))?);
    Ok(())
}

#[test]
fn ranges_of_a_foreign_set_read_back() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let ns = NetNs::create("ns")?;
    nft(
        &ns,
        &["-f", "-"],
        "table inet t {
            set nets { type ipv4_addr; flags interval; elements = { 0.0.0.0/8, 10.0.0.0/9, 10.128.0.0/10, 240.0.0.0/4, 192.0.2.1 } }
            set ports { type inet_service; flags interval; elements = { 80, 8000-8009, 60000-65535 } }
            map weak { type ipv4_addr : mark; timeout 1h; elements = { 10.0.0.1 timeout 5s : 0x7 } }
        }",
    )?;
    let table = Table::new(Family::Inet, "t");
    let mut nft = Nft::open_in(&ns)?;
    let nets = Set::new(&table, "nets", Spec::types([Type::Ipv4Addr])).interval();
    let shown = |elements: Vec<Element>| elements.iter().map(Element::to_string).collect::<Vec<_>>();
    let found = shown(nft.elements(&nets)?);
    assert_eq!(found, ["0.0.0.0/8", "10.0.0.0/9", "10.128.0.0/10", "192.0.2.1", "240.0.0.0/4"]);
    let ports = Set::new(&table, "ports", Spec::types([Type::InetService])).interval();
    assert_eq!(shown(nft.elements(&ports)?), ["80", "8000-8009", "60000-65535"]);
    let mut weak = Set::map(&table, "weak", Spec::types([Type::Ipv4Addr]), Spec::types([Type::Mark]));
    weak.timeout = Some(Duration::from_hours(1));
    let found = nft.elements(&weak)?;
    let [element] = &found[..] else { panic!("{found:?}") };
    assert!(element.expires.is_some_and(|left| left <= Duration::from_secs(5)), "{element}");
    assert_eq!(Element { expires: None, ..element.clone() }.to_string(), "10.0.0.1 timeout 5s : 0x00000007");
    // What is left of the time is written as it was read.
    let left = Some(Duration::from_secs(2));
    let again = Element { expires: left, ..element.clone() };
    let change = [
        Op::DelElements { set: weak.clone(), elements: found },
        Op::AddElements { set: weak.clone(), elements: vec![again] },
    ];
    nft.commit(&Batch(change.into()))?;
    let expires = nft.elements(&weak)?[0].expires;
    assert!(expires > Some(Duration::from_secs(1)) && expires <= left, "{expires:?}");
    let gone = Set::new(&table, "gone", Spec::types([Type::Mark]));
    assert!(nft.elements(&gone).unwrap_err().is_not_found());
    Ok(())
}

#[test]
fn every_kind_of_statement_lists_as_nft_loads_it() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let listed = commit_both_ways(&everything::batch())?;
    assert!(listed.contains("comment \"why it is here\""), "{listed}");
    // What nft has listed, it can read again.
    let again = NetNs::create("again")?;
    nft(&again, &["-f", "-"], &listed)?;
    Ok(())
}

#[test]
fn an_ip_table_has_its_own_icmp_words() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut batch = Batch::new();
    for family in [Family::Ip, Family::Ip6] {
        let table = Table::new(family, "words");
        batch.push(Op::AddTable(table.clone()));
        batch.push(Op::AddChain(Chain::regular(&table, "c")));
        for reject in [Reject::PortUnreachable, Reject::HostUnreachable, Reject::AdminProhibited, Reject::TcpReset] {
            batch.push(Op::AddRule(Rule::new(&table, "c", [Statement::Reject(reject)])));
        }
    }
    commit_both_ways(&batch)?;
    Ok(())
}

#[test]
fn a_netdev_chain_hangs_on_its_device() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let table = Table::new(Family::Netdev, "loss");
    let hook = Hook {
        kind: ChainKind::Filter,
        at: HookPoint::Ingress,
        priority: Priority::FILTER,
        policy: None,
        device: Some("lo".parse()?),
    };
    let lose = Expr::Numgen { mode: NumgenMode::Random, modulus: 100, offset: 0 };
    commit_both_ways(&Batch(vec![
        Op::AddTable(table.clone()),
        Op::AddChain(Chain::base(&table, "c", hook)),
        Op::AddRule(Rule::new(
            &table,
            "c",
            [
                Statement::equal(Field::IpSaddr, Value::Ipv4("10.0.0.1".parse()?)),
                Statement::equal(Field::EtherSaddr, Value::Mac("02:00:00:00:00:01".parse()?)),
                Statement::equal(Field::TcpDport, Value::Port(80)),
                Statement::Match { left: lose, op: CmpOp::Lt, right: Value::Integer(20) },
                Statement::drop(),
            ],
        )),
    ]))?;
    Ok(())
}

#[test]
fn changes_after_the_first_batch_are_made_too() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let table = layout::table();
    layout::batch().commit()?;
    let mut nft = Nft::open()?;
    let before = nft.generation()?;
    let eps = layout::eps();
    let handle = nft.rules(&table)?.iter().find(|rule| rule.chain == "lb-3").expect("it was made").handle;
    // The value of a map's element cannot be changed in place; delete and add in one batch are one step for packets.
    let marked_source = || Expr::Concat(vec![Ct::Mark.into(), Field::IpSaddr.into()]);
    nft.commit(&Batch(vec![
        Op::DelElements { set: eps.clone(), elements: vec![layout::endpoint(1, 0, "10.0.0.1")] },
        Op::AddElements { set: eps.clone(), elements: vec![layout::endpoint(1, 0, "10.0.0.99")] },
        Op::DelRule { table: table.clone(), chain: "lb-3".into(), handle },
        Op::FlushChain { table: table.clone(), chain: "learn".into() },
        Op::FlushSet { table: table.clone(), set: "ranged".into() },
        // A rule about a set of an earlier batch: its keys are big-endian, which only the kernel knows by now.
        Op::AddRule(Rule::new(&table, "learn", [Statement::in_set(marked_source(), "ranges"), Statement::Counter])),
        Op::AddChain(Chain::regular(&table, "unused")),
        Op::DelChain { table: table.clone(), chain: "unused".into() },
        Op::AddSet(Set::new(&table, "unused", Spec::types([Type::Mark]))),
        Op::DelSet { table: table.clone(), set: "unused".into() },
    ]))?;
    assert_ne!(nft.generation()?, before);
    let found = nft.elements(&eps)?;
    assert!(found.contains(&layout::endpoint(1, 0, "10.0.0.99")) && found.len() == 7, "{found:?}");
    let ranged = Set::new(&table, "ranged", Spec::types([Type::Mark]));
    assert_eq!(nft.elements(&ranged)?, []);
    let listed = self::nft(&NetNs::current()?, &["list", "chain", "ip", "kproxy", "learn"], "")?;
    assert!(listed.contains("ct mark . ip saddr @ranges counter"), "{listed}");
    // From nothing, whether it was there or not.
    let anew = [Op::AddTable(table.clone()), Op::DelTable(table.clone())];
    nft.commit(&anew.clone().into_iter().chain(layout::batch().0).collect())?;
    nft.commit(&anew.into_iter().collect())?;
    assert_eq!(nft.tables()?, []);
    Ok(())
}

#[test]
fn a_failed_change_is_named_and_undoes_the_whole_batch() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let table = Table::new(Family::Ip, "t");
    let error = Batch(vec![
        Op::AddTable(table.clone()),
        Op::AddChain(Chain::regular(&table, "c")),
        Op::AddRule(Rule::new(&table, "c", [Statement::in_set(Field::IpSaddr, "nowhere"), Statement::drop()])),
        Op::DelSet { table: table.clone(), set: "nothing".into() },
    ])
    .commit()
    .unwrap_err();
    assert_eq!(error.to_string(), "nft add rule ip t c ip saddr @nowhere drop: No such file or directory");
    assert!(error.is_not_found());
    assert_eq!(Nft::open()?.tables()?, [], "nothing of it was made");
    let error = Batch(vec![Op::DelTable(table.clone())]).commit().unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let marks = Set::new(&table, "marks", Spec::types([Type::Mark]));
    Batch(vec![Op::AddTable(table), Op::AddSet(marks.clone())]).commit()?;
    let elements = (0..5000).map(|mark| Element::key([Value::Mark(mark)])).collect();
    let error = Batch(vec![Op::DelElements { set: marks, elements }]).commit().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("delete element ip t marks { 0x00000000, 0x00000001, 0x00000002, … 4997 more }: No such file"),
        "{error}"
    );
    Ok(())
}

#[test]
fn thirty_thousand_services_are_one_batch() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut batch = layout::batch();
    let front = layout::sets().swap_remove(0).0;
    let address = |network: u32, number: u32| Value::Ipv4((network + number).into());
    let services = 30_000_u32;
    let fronts = (0..services).map(|number| {
        let key = [address(0xac_10_00_00, number), Value::Protocol(6), Value::Port(80)];
        Element::map(key, [Value::Mark(0x0020_0000 | number)])
    });
    let endpoints = (0..2 * services).map(|number| {
        let key = [Value::Mark(0x2000_0000 | (number / 2)), Value::Protocol(6), Value::Integer(number % 2)];
        Element::map(key, [address(0x0b_00_00_00, number), Value::Port(8080)])
    });
    batch.push(Op::AddElements { set: front.clone(), elements: fronts.collect() });
    batch.push(Op::AddElements { set: layout::eps(), elements: endpoints.collect() });
    let mut nft = Nft::open()?;
    let start = Instant::now();
    nft.commit(&batch)?;
    let took = start.elapsed();
    assert_eq!(nft.elements(&front)?.len(), 30_003);
    assert_eq!(nft.elements(&layout::eps())?.len(), 60_007);
    // Generous, for a machine that runs other tests: alone it takes about 0.2 s, and `nft -f` ten times that.
    assert!(took < Duration::from_secs(10), "{took:?}");
    Ok(())
}

#[test]
fn a_rule_is_inserted_before_all_others() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let table = Table::new(Family::Ip, "order");
    let rule = |statement: Statement| Rule::new(&table, "c", [statement]);
    let listed = commit_both_ways(&Batch(vec![
        Op::AddTable(table.clone()),
        Op::AddChain(Chain::regular(&table, "c")),
        Op::AddRule(rule(Statement::accept())),
        Op::InsertRule(rule(Statement::drop())),
    ]))?;
    let position = |word: &str| listed.find(word).unwrap_or_else(|| panic!("{word} is missing in {listed}"));
    assert!(position("drop") < position("accept"), "{listed}");
    Ok(())
}

#[test]
fn an_element_has_an_owner_and_is_created_once() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let table = Table::new(Family::Ip, "shared");
    let ports = Set::map(&table, "ports", Spec::types([Type::InetService]), Spec::types([Type::Ipv4Addr]));
    let element = Element::map([Value::Port(80)], [Value::Ipv4("10.0.0.2".parse()?)]).with_comment("net c1 eth0");
    let create =
        |element: &Element| Batch(vec![Op::CreateElements { set: ports.clone(), elements: vec![element.clone()] }]);
    Batch(vec![Op::AddTable(table.clone()), Op::AddSet(ports.clone())]).commit()?;
    create(&element).commit()?;
    assert_eq!(Nft::open()?.elements(&ports)?, std::slice::from_ref(&element));
    let again = create(&element).commit().unwrap_err();
    assert!(again.is_exists(), "{again}");
    assert!(again.to_string().contains("create element ip shared ports { 80 comment \"net c1 eth0\" : 10.0.0.2 }"));
    Ok(())
}

#[test]
fn a_foreign_rule_tells_its_target_and_what_it_compares_with() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let ns = NetNs::create("ns")?;
    nft(&ns, &["-f", "-"], "table ip t { chain a { }; chain b { ip saddr 10.0.0.2 tcp dport 80 jump a; }; }")?;
    let rules = Nft::open_in(&ns)?.rules(&Table::new(Family::Ip, "t"))?;
    assert_eq!(rules.len(), 1);
    assert_eq!(Nft::open_in(&ns)?.rules_of_chain(&Table::new(Family::Ip, "t"), "a")?, []);
    assert_eq!(Nft::open_in(&ns)?.rules_of_chain(&Table::new(Family::Ip, "t"), "b")?, rules);
    assert_eq!(rules[0].target.as_deref(), Some("a"));
    assert_eq!(rules[0].constants, [vec![10, 0, 0, 2], vec![6], vec![0, 80]]);
    Ok(())
}
