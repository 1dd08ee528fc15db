//! The relay: transparent listeners, one io_uring a thread, the pure machine of [`weir_core::relay`] in between.
//!
//! Intercepted connections that the fast road does not carry arrive here (nft tproxy, DESIGN section 7): the accepted
//! socket's local address is the destination that the client meant. Each is judged like on the fast road, connected
//! from the client's own address and port, and relayed with half-close and back-pressure. Control starts it with
//! [`RelayHandle::start`] and asks it through the handle.
//!
//! A connection goes through `listener.rs -> ring.rs -> weir_core::relay -> pump.rs -> transfer.rs -> stock.rs`.
//!
//! # How octets are moved, and why so
//!
//! The ring (one a thread: SINGLE_ISSUER, DEFER_TASKRUN) brings connections (multishot accept) and says what each socket is ready
//! for (one multishot poll a socket, submitted once in its life); whether a receive has left anything, it says itself (TCP_INQ), so that
//! hardly one finds nothing. What is ready is received into the thread's one buffer, which
//! stays in the cache, and sent on at once; only what the other end does not take is kept with the connection. Receives of 16 KiB
//! and more go on through a pipe (splice) until they get small again; where they turn out to lie in small pieces, as packets of an
//! MTU do, they are copied after all, which the pipe's 16 slots tell. So an idle connection has no buffer, in the process or in
//! the kernel's request for it, and a slow receiver holds at most [`Limits::buffer`](weir_core::relay::Limits::buffer) octets.
//!
//! Measured before the choice, with prototypes of 200 lines in the arrangement of `make bench-relay` (its CPU time of the
//! gateway, kernel 6.18, one run of 2 s each; what differs by less than a tenth is the same):
//!
//! | way | new connection, us | request, us | bulk, large packets, ns/KiB | bulk, MTU, ns/KiB |
//! | --- | --- | --- | --- | --- |
//! | receive into a buffer of its own (64 KiB), send, both in the ring | 85 | 11.2 | 761 | 2281 |
//! | the same with 256 KiB | 83 | 11.0 | 817 | 2128 |
//! | multishot receive into provided buffers (256 of 4 KiB), send in the ring | 64 | 10.3 | 1609 | 2497 |
//! | the same, sent by send(2) | 64 | 10.1 | 1539 | 2747 |
//! | poll in the ring, recv(2) and send(2) with one buffer of 64 KiB for all | 61 | 10.6 | 709 | 2209 |
//! | poll in the ring, splice(2) through a pipe of 1 MiB a direction | 75 | 12.1 | 434 | 2094 |
//! | nobody in between: the kernel forwards | | | | 988 |
//!
//! Three more ways later, as prototypes with neither rules nor limits, hooks or counters, in turns in one run with the relay, medians of 3 of
//! 0.7 s, on a busier machine. Rates are of a second, bulk in Gbit/s:
//!
//! | way | new connections | us | requests | us | bulk, MTU | ns/KiB | bulk, large packets | ns/KiB |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | poll, receive and send; splice once it is bulk | 12,450 | 75 | 65,900 | 13.8 | 2.4 | 3000 | 7.1 | 569 |
//! | poll, receive and send always | 11,940 | 79 | 66,200 | 13.6 | 3.0 | 2620 | 7.3 | 931 |
//! | poll, receive, zero-copy send (SEND_ZC) | 11,880 | 82 | 66,400 | 14.4 | 2.9 | 2540 | 6.8 | 537 |
//! | multishot receive and send bundles, buffers of 8 KiB | 10,660 | 88 | 56,100 | 16.1 | 1.4 | 5570 | fails | |
//! | sockmap (stream verdict) from the first answer on | 10,220 | 94 | 67,400 | 13.6 | 3.0 | 2660 | 7.4 | 923 |
//! | HAProxy | 10,290 | 96 | 59,400 | 15.8 | 2.7 | 2900 | 7.6 | 943 |
//! | the relay as it is | 10,280 | 94 | 60,300 | 15.4 | 2.4 | 3160 | 7.0 | 616 |
//!
//! sockmap costs more CPU than is shown: the kernel sends from a workqueue, whose time is nobody's here. Its rates are within the spread
//! of copying, and it would cost what the relay promises: FIN may overtake what waits in that queue, what a slow receiver leaves there
//! is not ours to bound, and octets pass by the counters, the idle time and the bandwidth of a rule. Zero-copy sends are worth as much as pipes
//! for large packets and cost more for requests; their buffers have to stay until the receiver has acknowledged them. Bundles stopped in two of
//! three runs of large packets, for a reason that was not looked for: an error of the prototype, probably.
//!
//! The prototypes, which have no rules, counters or timers, show the most that is left to gain: a fifth of a connection's CPU and a tenth of a request's.
//!
//! In the relay as it is, packets of an MTU cost 2730 to 2950 ns/KiB through pipes and 2410 to 2650 copied; HAProxy 2260 to 2560 in the
//! same runs, and the first of these ways 2200 to 2340, whose receives wait longer and bring more. Large ones cost 520 to 580, HAProxy 780 to 850.
//!
//! # Where the cycles go
//!
//! By `perf record` of the gateway's CPU, a load of 2 s each, the relay before what is told below and HAProxy on a busy machine. To a
//! connection and a request us, to bulk ns a KiB:
//!
//! | | connection | HAProxy | request | HAProxy | bulk, MTU | HAProxy |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | in user space | 10.5 | 17.2 | 1.9 | 2.5 | 173 | 245 |
//! | entering the kernel | 4.2 | 4.7 | 1.0 | 0.8 | 121 | 96 |
//! | waiting and waking | 7.3 | 8.6 | 0.8 | 1.2 | 81 | 61 |
//! | sockets: made, named, connected, accepted, closed | 18.7 | 18.0 | | | | |
//! | TCP, with what is copied or spliced | 19.4 | 21.9 | 5.6 | 5.5 | 738 | 1090 |
//! | IP, devices, NAPI | 14.4 | 14.4 | 3.1 | 3.1 | 1329 | 916 |
//! | netfilter | 2.8 | 2.7 | 0.5 | 0.4 | 161 | 110 |
//! | else | 5.8 | 8.0 | 1.3 | 1.4 | 346 | 177 |
//! | all | 83 | 95 | 14.2 | 14.9 | 2950 | 2700 |
//! | without the first three | 61 | | 10.4 | | 2575 | |
//!
//! The last line is what is left when nothing is done in user space, no call costs anything and nobody waits: 0.64 of HAProxy for a connection,
//! 0.70 for a request and 0.95 for bulk in packets of the MTU. So what uses two sockets of the kernel can open 1.5 times as many connections
//! as HAProxy, or answer 1.3 times as many requests, only if those three cost 2.5 us of the relay's 22, and 1.0 of its 3.8; for 1.3 times the bulk in packets
//! of the MTU that would not be enough, the kernel would have to do less for each packet. There packets are sent again (4 to 13 % of them in one
//! sample each, more by HAProxy): they seem to be lost at the rings of veth devices (256 packets, of which one large send fills a sixth), and what was
//! spliced seems to be copied after all, where devices have no scatter and gather. With offloads the CPUs of both ends and of the gateway are busy: half of
//! the gateway's time is softirqs while nobody runs, which the benchmark counts as nobody's, of all contenders.
//!
//! Tried since, in turns in one run, medians of 4 to 7 of 0.6 s, spreads of a tenth each way:
//!
//! | | connection, us | request, us | bulk, MTU, ns/KiB | large packets, ns/KiB |
//! | --- | --- | --- | --- | --- |
//! | the relay before | 87.2 | 14.8 | 3120 | 590 |
//! | TCP_INQ: no receive that finds nothing (POLLPRI, which comes with all octets, had asked for one each) | 90.0 | 14.5 | 2830 | 490 |
//! | and FIN goes with the last octets, where it is known of | 83.8 | 14.3 | | |
//! | and keepalive of the server's leg only once it has lived for a while | 81.4 | 13.9 | | |
//! | HAProxy in the same runs | 95.0 | 14.5 | 2770 | 920 |
//! | not kept: the ACK of the server's SYN-ACK goes with the request (TCP_QUICKACK off) | 89.9 | 13.7 | | |
//! | not kept: up to 100 us of waiting for more after little of much | 88.2 | 15.2 | 3070 | 570 |
//! | not kept: the relay's thread at nice 0 or 10 where NAPI is at -20, or SCHED_BATCH | 87 to 93 | 14.2 to 15.0 | 2980 to 3230 | 600 to 620 |
//!
//! Tried after that, in turns in one run, medians of 4 of 0.6 or 0.7 s, spreads of a seventh each way; none is kept:
//!
//! | | new connections | us | requests | us |
//! | --- | --- | --- | --- | --- |
//! | the relay as it is | 9,520 | 79.2 | 48,600 | 14.6 |
//! | it waits up to 50 us for 16 completions where there were 4 (IORING_ENTER_EXT_ARG, min_wait) | 9,900 | 80.2 | 46,400 | 15.9 |
//! | likewise, up to 200 us | 10,090 | 80.4 | 47,500 | 13.9 |
//! | listeners with TCP_QUICKACK off, so that a request's ACK goes with the answer | 8,210 | 83.3 | 56,200 | 13.1 |
//! | and no TCP_NODELAY on the server's leg | 8,860 | 80.3 | 51,000 | 12.9 |
//! | HAProxy | 7,680 | 101.6 | 49,700 | 13.3 |
//!
//! Without the quick ACK a client that writes its request in two pieces and has not set TCP_NODELAY waits 40 ms for the answer: a tenth
//! of a request's CPU, within the spread, is not worth that.
//!
//! | | bulk, MTU | ns/KiB | bulk, large packets | ns/KiB |
//! | --- | --- | --- | --- | --- |
//! | the relay as it is | 1.9 | 3210 | 6.4 | 420 |
//! | a direction in bulk rests for 200 us after each receive | 2.0 | 2980 | 4.6 | 470 |
//! | likewise, 500 us | 2.1 | 2890 | 3.2 | 570 |
//! | likewise, 1 ms | 1.9 | 2820 | 1.9 | 650 |
//! | 500 us, pipes of 1 MiB | 2.1 | 3050 | 6.3 | 410 |
//! | HAProxy | 2.3 | 2710 | 5.5 | 660 |
//!
//! # What bounds bulk
//!
//! Both CPUs, that of the ends and the gateway's, are busy for 0.9 to 1.0 of the time, whoever carries. In packets of the MTU the client's ring
//! overflows, since its CPU does not keep up: of 45 packets of 64 KiB 1 to 4 are sent again (by HAProxy 2 to 5). The relay is sent 15 ACKs for 64 KiB
//! and HAProxy 4 to 11, for HAProxy brings more at a time: that is what a rest may gain. With offloads the relay's packets are twice as large (61 KB to
//! 33), and what it costs is elsewhere: packets that are steered to the gateway's CPU (RPS) are handled by softirqs there, 0.4 to 0.7 of its time
//! (0.2 to 0.8 by HAProxy), which the scheduler charges to nobody while nobody runs, and in a fifth of the samples the CPU signals the other
//! one, which in a virtual machine leaves it. By all of the CPU's time that is not idle (/proc/stat), the fairer account there, a KiB costs 1,170 and
//! 1,620 ns in two runs, and HAProxy's 1,000 and 1,410: what the relay saves by the scheduler's account it pays in softirqs.
//!
//! Provided buffers win nothing over one buffer that is always warm, have to be large for bulk and small for memory, and
//! receive beyond what the other end takes before they can be stopped. Direct descriptors do not fit: where a client wanted to go is
//! its socket's own address, which the ring cannot tell before Linux 6.19, and its shutdown always takes a worker thread; their
//! table is bound by RLIMIT_NOFILE as well. Deadlines are one wheel's, not linked timeouts: those are an operation more each time.

mod conn;
mod flows;
mod handle;
mod listener;
mod pump;
mod ring;
mod stats;
mod stock;
mod timers;
mod transfer;

pub use flows::RelayFlow;
pub use handle::{Hook, Hooks, RelayConfig, RelayError, RelayHandle};
pub use stats::{Counter, Counters};
