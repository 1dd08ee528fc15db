use super::*;

#[test]
fn lane_between_ports_needs_both_directions() {
    let mut lanes = Lanes::NONE;
    assert!(lanes.is_empty());
    lanes.between[0].insert(PortId(1));
    assert!(!lanes.carry(PortId(0), PortId(1)));
    lanes.between[1].insert(PortId(0));
    assert!(lanes.carry(PortId(0), PortId(1)) && lanes.carry(PortId(1), PortId(0)));
    assert!(!lanes.carry(PortId(0), PortId(0)) && !lanes.carry(PortId(77), PortId(0)));
}
