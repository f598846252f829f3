#![no_main]
//! Both sides of a display's protocol. What a viewer says and is understood is said in the same words to a server, and
//! what a server said is completed or refused.

use virtuoso_overlay::vm::rfb::{ClientMessages, Follower, Greeting, PixelFormat, Welcome};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    Greeting::default().hear(bytes, &mut Vec::new()).ok();
    Welcome::new().0.hear(bytes, &mut Vec::new()).ok();
    let mut heard = ClientMessages::default();
    heard.hear(bytes);
    while let Ok(Some(message)) = heard.next_message() {
        let mut again = ClientMessages::default();
        again.hear(&message.encode());
        assert_eq!(again.next_message(), Ok(Some(message)));
    }
    let format = PixelFormat([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
    let mut follower = Follower::new(format, (640, 480)).expect("the format has 32 bits");
    follower.hear(bytes);
    if follower.complete(&[], &mut Vec::new()).is_ok() {
        assert!(follower.is_between());
    }
});
