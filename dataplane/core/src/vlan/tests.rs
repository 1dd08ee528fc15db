use super::*;
use crate::frame::HeapFrame;

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

fn frame(tags: &[(u16, u16)], capacity: usize) -> HeapFrame {
    let mut bytes = MACS.to_vec();
    for (protocol, tci) in tags {
        bytes.extend(protocol.to_be_bytes());
        bytes.extend(tci.to_be_bytes());
    }
    bytes.extend([0x08, 0x00, 0x45, 1, 2, 3]);
    HeapFrame::from_packet(&bytes, capacity)
}

#[test]
fn tags_taken_off_and_put_on_again_are_the_same_with_their_priorities() {
    let rows = [
        (vec![(DOT1Q, 0xa00a)], Vlan::new(10)),
        (vec![(DOT1AD, 0x7064)], Vlan { outer: Tag { protocol: DOT1AD, id: 100 }, inner: None }),
        (vec![(DOT1AD, 0xf064), (DOT1Q, 0x200a)], Vlan::stacked(100, 10)),
        (
            vec![(DOT1Q, 0x0064), (DOT1Q, 0xefff)],
            Vlan { outer: Tag { protocol: DOT1Q, id: 100 }, inner: Some(Tag { protocol: DOT1Q, id: 4095 }) },
        ),
    ];
    for (tags, vlan) in rows {
        let mut one = frame(&tags, 64);
        let before = one.data().to_vec();
        assert_eq!(take(&mut one), Ok(Some(vlan)));
        assert_eq!(one.data(), frame(&[], 64).data(), "{vlan}");
        assert!(put_on(&mut one, &vlan));
        assert_eq!(one.data(), before, "{vlan}");
    }
}

#[test]
fn frame_from_one_vlan_to_another_keeps_its_priority() {
    let mut one = frame(&[(DOT1Q, 0xb00a)], 64);
    take(&mut one).unwrap();
    put_on(&mut one, &Vlan::new(20));
    assert_eq!(one.data(), frame(&[(DOT1Q, 0xb014)], 64).data());
    take(&mut one).unwrap();
    put_on(&mut one, &Vlan::stacked(100, 20));
    assert_eq!(one.data(), frame(&[(DOT1AD, 0xb064), (DOT1Q, 0xb014)], 64).data());
}

#[test]
fn priority_tag_is_taken_off_and_is_no_vlan() {
    let mut one = frame(&[(DOT1Q, 0xe000)], 64);
    assert_eq!(take(&mut one), Ok(None));
    assert_eq!(one.data(), frame(&[], 64).data());
    assert_eq!(take(&mut one), Ok(None), "there is none any more");
    assert!(put_on(&mut one, &Vlan::new(7)));
    assert_eq!(one.data(), frame(&[(DOT1Q, 0xe007)], 64).data(), "and the priority goes on");
}

#[test]
fn more_tags_than_a_link_has_are_refused() {
    for tags in [[0, 10, 1].as_slice(), &[10, 0], &[0, 0], &[10, 20, 30], &[10, 20, 0]] {
        let mut one = frame(&tags.iter().map(|id| (DOT1Q, *id)).collect::<Vec<_>>(), 64);
        assert_eq!(take(&mut one), Err(DropReason::NestedTag), "{tags:?}");
    }
}

#[test]
fn frame_without_room_gets_no_tag_and_one_that_is_cut_off_none_either() {
    let mut full = frame(&[], 18);
    let before = full.data().to_vec();
    assert!(!put_on(&mut full, &Vlan::new(1)));
    assert_eq!(full.data(), before);
    for len in 0..18 {
        let mut short = HeapFrame::from_packet(&frame(&[(DOT1Q, 1), (DOT1Q, 2)], 64).data()[..len], 64);
        let _whatever = take(&mut short);
        assert!(short.data().len() <= len);
    }
    let mut none = HeapFrame::new(64);
    assert!(!put_on(&mut none, &Vlan::new(1)));
}
