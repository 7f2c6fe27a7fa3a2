//! Claude behind TLS: HTTP/2 where both speak it, else 1.1, a certificate that is checked, answers that come compressed.

use std::{
    net::TcpListener,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{Version, header},
    response::Response,
};
use axum_server::tls_rustls::RustlsConfig;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tower_http::compression::{CompressionLayer, predicate::SizeAbove};

use crate::harness::{Setup, client, simulator};

/// What a relay saw of a call.
#[derive(Clone)]
struct Seen {
    /// The protocol that was agreed on.
    version: Version,
    /// What the caller takes besides plain text.
    accepted: String,
}

/// A relay behind TLS.
struct Relay {
    claude: String,
    calls: Mutex<Vec<Seen>>,
}

async fn pass_on(State(relay): State<Arc<Relay>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let accepted = head.headers.get(header::ACCEPT_ENCODING).map_or("", |value| value.to_str().unwrap()).to_owned();
    relay.calls.lock().unwrap().push(Seen { version: head.version, accepted });
    let mut headers = head.headers;
    for own in [header::HOST, header::CONTENT_LENGTH, header::ACCEPT_ENCODING] {
        headers.remove(own);
    }
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let onward = client().request(head.method, format!("{}{}", relay.claude, head.uri.path()));
    let answer = onward.headers(headers).body(body).send().await.unwrap();
    let mut response = Response::builder().status(answer.status());
    for name in [header::CONTENT_TYPE.as_str(), "request-id"] {
        if let Some(value) = answer.headers().get(name) {
            response = response.header(name, value);
        }
    }
    response.body(Body::from(answer.bytes().await.unwrap())).unwrap()
}

/// A relay to `claude` that offers these protocols, its address, and its certificate as PEM.
async fn relay(claude: String, protocols: &[&[u8]]) -> (Arc<Relay>, String, String) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let relay = Arc::new(Relay { claude, calls: Mutex::default() });
    let router = Router::new()
        .fallback(pass_on)
        .layer(CompressionLayer::new().compress_when(SizeAbove::new(0)))
        .with_state(Arc::clone(&relay));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(Arc::new(config))).unwrap();
    tokio::spawn(server.serve(router.into_make_service()));
    (relay, address, cert.pem())
}

#[tokio::test]
async fn the_protocol_is_negotiated_and_answers_come_compressed() {
    let claude = simulator().await;
    for (protocols, version) in
        [(&[b"h2".as_slice(), b"http/1.1"][..], Version::HTTP_2), (&[b"http/1.1".as_slice()][..], Version::HTTP_11)]
    {
        let (relay, address, certificate) = relay(claude.base_url(), protocols).await;
        let setup = Setup::new(&address).with("SSL_CERT_FILE", "certificate.pem");
        std::fs::write(setup.folder().join("certificate.pem"), certificate).unwrap();
        let service = setup.start();
        let id = service.submit("Should we encrypt?").await.id();
        let job = service.ended(&id).await.body;
        assert_eq!(job["status"], "succeeded", "{job:#}");
        let calls = relay.calls.lock().unwrap().clone();
        assert!(!calls.is_empty());
        for call in calls {
            assert_eq!(call.version, version);
            assert!(call.accepted.contains("gzip"), "{}", call.accepted);
        }
    }
}

#[tokio::test]
async fn nothing_is_sent_to_a_server_whose_certificate_nobody_vouches_for() {
    let claude = simulator().await;
    let (relay, address, _) = relay(claude.base_url(), &[b"http/1.1"]).await;
    let service = Setup::new(&address).with("MAX_RETRIES", "0").start();
    let id = service.submit("Should we trust it?").await.id();
    let job = service.ended(&id).await.body;
    assert_eq!(job["error"]["code"], "connect_failed", "{job:#}");
    assert_eq!(relay.calls.lock().unwrap().len(), 0);
}
