//! The pages as a browser without script meets them: forms, redirects, cookies. What a script adds is tested in a browser.

use ceoagent::claude::simulator::Fault;
use reqwest::{Client, Method, RequestBuilder, StatusCode, redirect::Policy};
use serde_json::json;

use crate::harness::{ADMIN_TOKEN, Service, Setup, client, send, simulator};

const EVIL: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>";

/// A browser of one person: keeps the session, follows no redirect.
struct Browser {
    client: Client,
    base: String,
    cookies: Vec<String>,
}

struct Page {
    status: StatusCode,
    location: String,
    text: String,
}

impl Browser {
    fn of(service: &Service) -> Browser {
        drop(client());
        let client = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        Browser { client, base: service.base().to_owned(), cookies: Vec::new() }
    }

    async fn send(&mut self, request: RequestBuilder) -> Page {
        let request = request.header("accept", "text/html,*/*;q=0.8");
        let answer = request.header("cookie", self.cookies.join("; ")).send().await.unwrap();
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        for cookie in answer.headers().get_all("set-cookie") {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let name = pair.split_once('=').unwrap().0;
            self.cookies.retain(|kept| kept.split_once('=').unwrap().0 != name);
            self.cookies.push(pair.to_owned());
        }
        let status = answer.status();
        let location = answer.headers().get("location").map_or("", |to| to.to_str().unwrap()).to_owned();
        let text = answer.text().await.unwrap();
        assert!(text.len() < 100_000, "a page of {} bytes", text.len());
        Page { status, location, text }
    }

    async fn get(&mut self, path: &str) -> Page {
        let request = self.client.get(format!("{}{path}", self.base));
        self.send(request).await
    }

    async fn post(&mut self, path: &str, form: &[(&str, &str)]) -> Page {
        let request = self.client.post(format!("{}{path}", self.base));
        let request = filled(request, form);
        self.send(request).await
    }

    /// Signs in; gives the mark that forms carry.
    async fn sign_in(&mut self) -> String {
        let page = self.post("/admin/login", &[("token", ADMIN_TOKEN), ("next", "/admin?status=failed")]).await;
        assert_eq!((page.status, page.location.as_str()), (StatusCode::SEE_OTHER, "/admin?status=failed"));
        let page = self.get("/admin").await;
        let (_, rest) = page.text.split_once("name=\"mark\" value=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    }
}

/// With a filled form.
fn filled(request: RequestBuilder, form: &[(&str, &str)]) -> RequestBuilder {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    request.header("content-type", "application/x-www-form-urlencoded").body(body)
}

#[tokio::test]
async fn a_question_asked_on_the_page_becomes_a_memo_at_its_own_address() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).start();
    let mut browser = Browser::of(&service);
    let asked = browser.get("/").await.text;
    assert!(asked.contains("<option value=\"auto\" selected>automatic</option>"), "{asked}");
    let form = [
        ("page", "p1"),
        ("query", "Should we open a second plant?"),
        ("options", "Yes\r\nNo"),
        ("priority", "high"),
        ("depth", "auto"),
    ];
    let sent = browser.post("/", &form).await;
    assert_eq!(sent.status, StatusCode::SEE_OTHER);
    let again = browser.post("/", &form).await;
    assert_eq!(again.location, sent.location, "a form sent twice is one question");
    claude.wait_for_calls(1).await;
    let pending = browser.get(&sent.location).await;
    assert!(pending.text.contains("http-equiv=\"refresh\""), "without script it loads itself again");
    assert!(pending.text.contains(&format!("data-follow=\"{}/events\"", sent.location)), "{}", pending.text);
    claude.release();
    let id = sent.location.strip_prefix("/jobs/").unwrap();
    assert_eq!(service.ended(id).await.body["status"], "succeeded");
    let memo = browser.get(&sent.location).await;
    for part in ["Bottom line", "Recommendation", "Weighted total", "class=\"matrix\"", "Next steps", "v1"] {
        assert!(memo.text.contains(part), "{part} is missing from\n{}", memo.text);
    }
    let markdown = browser.get(&format!("{}/memo.md", sent.location)).await;
    assert!(markdown.text.starts_with("# ") && markdown.text.contains("## Recommendation"), "{}", markdown.text);
    let chinese = browser.get(&format!("{}?lang=zh", sent.location)).await;
    assert_eq!((chinese.status, &chinese.location), (StatusCode::SEE_OTHER, &sent.location));
    let both = browser.get(&sent.location).await.text;
    assert!(
        both.contains("备忘录的生成过程") && both.contains("Bottom line"),
        "the words of a memo are in its own language"
    );
}

#[tokio::test]
async fn a_question_that_waits_is_told_its_place_and_not_that_its_text_comes_in_a_moment() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).with("WORKERS", "1").start();
    let mut browser = Browser::of(&service);
    let running = browser.post("/", &[("query", "First?")]).await;
    claude.wait_for_calls(1).await;
    let waiting = browser.post("/", &[("query", "Second?")]).await;
    let soon = "The text appears in a moment.";
    assert!(browser.get(&running.location).await.text.contains(soon));
    let text = browser.get(&waiting.location).await.text;
    assert!(!text.contains(soon) && text.contains("Position 1 in the queue. The answer is expected in "), "{text}");
    browser.sign_in().await;
    let queue = browser.get("/admin").await.text;
    assert!(queue.contains("· oldest: <time "), "{queue}");
}

#[tokio::test]
async fn every_page_says_that_claude_is_simulated_where_it_is() {
    const EN: &str = "Claude is simulated: nothing is billed";
    let setup = Setup::new("http://127.0.0.1:9").without("ANTHROPIC_API_KEY");
    let demo = setup.start_as(setup.command().arg("demo").env("LOG_LEVEL", "info"));
    let id = demo.submit("Should we lease a warehouse?").await.id();
    let mut browser = Browser::of(&demo);
    browser.sign_in().await;
    for path in ["/", "/admin", &format!("/jobs/{id}")] {
        let text = browser.get(path).await.text;
        assert!(text.contains(EN), "{path}: {text}");
    }
    browser.get("/?lang=zh").await;
    assert!(browser.get("/").await.text.contains("Claude 为模拟运行：不产生费用"));
    let log = demo.kill();
    assert!(!log.contains("at your cost"), "{log}");

    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    assert!(!Browser::of(&service).get("/").await.text.contains(EN));
}

#[tokio::test]
async fn what_users_and_the_model_write_never_becomes_markup() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let mut browser = Browser::of(&service);
    let form = [("query", EVIL), ("context", EVIL), ("options", EVIL)];
    let sent = browser.post("/", &form).await;
    let id = sent.location.strip_prefix("/jobs/").unwrap();
    // The simulated answer repeats the question.
    assert!(service.ended(id).await.body["result"]["decision_question"].as_str().unwrap().contains("<script>"));
    let mark = browser.sign_in().await;
    assert_eq!(mark.len(), 32);
    let refused = browser.post("/", &[("query", ""), ("context", EVIL)]).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    for page in [browser.get(&sent.location).await, browser.get("/admin").await, refused] {
        assert!(page.text.contains("&lt;script&gt;"), "{}", page.text);
        assert!(!page.text.contains("<script>") && !page.text.contains("<img"), "{}", page.text);
    }
}

#[tokio::test]
async fn what_is_no_job_or_failed_says_what_to_do() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let mut browser = Browser::of(&service);
    for path in ["/jobs/x", "/jobs/019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70", "/jobs/..%2f..%2fadmin"] {
        let page = browser.get(path).await;
        assert_eq!(page.status, StatusCode::NOT_FOUND, "{path}");
        assert!(page.text.contains("Job not found"), "{path}");
    }
    claude.script([Fault::Hold]);
    let sent = browser.post("/", &[("query", "To be given up?")]).await;
    claude.wait_for_calls(1).await;
    assert_eq!(browser.post(&format!("{}/cancel", sent.location), &[]).await.location, sent.location);
    assert!(browser.get(&sent.location).await.text.contains("The job was cancelled"));
    assert_eq!(browser.post(&format!("{}/retry", sent.location), &[]).await.location, sent.location);
    claude.release();
    let id = sent.location.strip_prefix("/jobs/").unwrap();
    assert_eq!(service.ended(id).await.body["status"], "succeeded");
}

#[tokio::test]
async fn the_queue_is_for_those_who_sign_in_and_no_other_site_acts_in_their_name() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let mut browser = Browser::of(&service);
    let closed = browser.get("/admin?status=failed").await;
    assert_eq!(closed.location, "/admin/login?next=%2Fadmin%3Fstatus%3Dfailed");
    let wrong = browser.post("/admin/login", &[("token", "wrong")]).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    let mark = browser.sign_in().await;
    assert!(browser.cookies.iter().all(|cookie| !cookie.contains(ADMIN_TOKEN)));

    let unmarked = browser.post("/admin/pause", &[]).await;
    assert_eq!(unmarked.status, StatusCode::FORBIDDEN);
    let request = browser.client.post(format!("{}/admin/pause", browser.base));
    let foreign = filled(request.header("sec-fetch-site", "cross-site"), &[("mark", &mark)]);
    assert_eq!(browser.send(foreign).await.status, StatusCode::FORBIDDEN);
    assert_eq!(browser.post("/admin/pause", &[("mark", &mark)]).await.location, "/admin");
    assert!(browser.get("/admin").await.text.contains("Paused by"));

    let sent = browser.post("/", &[("query", "Which of the two?")]).await;
    assert!(browser.get(&sent.location).await.text.contains("the queue is paused"));
    assert!(browser.get("/admin?text=which+of&status=queued&order=oldest").await.text.contains(&sent.location));
    assert!(!browser.get("/admin?text=nothing").await.text.contains(&sent.location));
    let bulk = [("mark", &*mark), ("filter", "text=which+of"), ("action", "cancel")];
    let dry_run = browser.post("/admin/actions", &bulk).await;
    assert!(dry_run.text.contains("Cancel 1 job?"), "{}", dry_run.text);
    let done = browser.post("/admin/actions", &[&bulk[..], &[("confirmed", "true")]].concat()).await;
    assert!(done.text.contains("1 job changed."), "{}", done.text);
    assert_eq!(browser.post("/admin/resume", &[("mark", &mark)]).await.location, "/admin");
    let audit = browser.get("/admin/audit").await;
    let words =
        ["paused the queue", "resumed the queue", "cancelled jobs", "Question contains: <strong>which of</strong>"];
    assert!(words.iter().all(|words| audit.text.contains(words)), "{}", audit.text);
    browser.get("/?lang=zh").await;
    let chinese = browser.get("/admin/audit").await.text;
    let words = ["暂停了队列", "取消了任务", "问题包含: <strong>which of</strong>"];
    assert!(words.iter().all(|words| chinese.contains(words)), "{chinese}");
    browser.get("/?lang=en").await;
    let limits = [("mark", &*mark), ("requests_per_minute", "77"), ("input_tokens_per_minute", "")];
    assert_eq!(browser.post("/admin/limits", &limits).await.location, "/admin/limits?saved=1");
    assert!(browser.get("/admin/limits").await.text.contains("value=\"77\""));

    let made = browser.post("/admin/keys", &[("mark", &mark), ("name", "<b>"), ("scope", "read")]).await;
    assert_eq!(made.status, StatusCode::UNPROCESSABLE_ENTITY);
    let made = browser.post("/admin/keys", &[("mark", &mark), ("name", "press"), ("scope", "read")]).await;
    let (_, secret) = made.text.split_once("id=\"new-key\">").unwrap();
    let secret = secret.split('<').next().unwrap();
    assert!(made.text.contains("REQUIRE_API_KEY=true"), "it says how to require keys: {}", made.text);
    let list = browser.get("/admin/keys").await;
    assert!(list.text.contains("press") && !list.text.contains(secret) && secret.len() > 20, "{}", list.text);
    assert_eq!(browser.post("/admin/keys/revoke", &[("name", "press")]).await.status, StatusCode::FORBIDDEN);
    let revoked = browser.post("/admin/keys/revoke", &[("mark", &mark), ("name", "press")]).await;
    assert_eq!(revoked.location, "/admin/keys");
    assert!(browser.get("/admin/keys").await.text.contains("revoked"));

    assert_eq!(browser.post("/admin/logout", &[("mark", &mark)]).await.location, "/");
    assert_eq!(browser.get("/admin").await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn every_condition_has_a_field_and_a_chip_and_actions_name_their_number_or_take_the_selected_rows() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let mut browser = Browser::of(&service);
    let mark = browser.sign_in().await;
    browser.post("/admin/pause", &[("mark", &mark)]).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let body = json!({"query": format!("Plan {n}?"), "metadata": {"team": "ops"}, "priority": "high"});
        ids.push(service.post("/api/v1/analyze", &body).await.id());
    }
    let all = browser.get("/admin?text=plan").await.text;
    for label in ["Cancel 3 jobs", "Retry 0 jobs", "Delete 0 jobs"] {
        assert!(all.contains(&format!(">{label}</button>")), "{label}: {all}");
    }
    let uncounted = browser.get("/admin?text=plan&count=false").await.text;
    let (_, jobs) = uncounted.split_once("<div id=\"jobs\"").unwrap();
    assert!(uncounted.contains(">Cancel …</button>") && !jobs.contains("count="), "{uncounted}");
    let filter = format!(
        "text=plan&status=queued&status=failed&priority=high&code=refused&model=m&caller=c&metadata=team%3Dops\
         &created_from=2026-01-01T10%3A00&created_before=2099-01-01T10%3A00%3A30&ids={}&order=oldest",
        ids[0]
    );
    let page = browser.get(&format!("/admin?{filter}")).await;
    assert_eq!((page.status, page.text.matches("<a class=\"chip\"").count()), (StatusCode::OK, 11), "{}", page.text);
    for part in [
        "name=\"text\" type=\"search\" value=\"plan\"",
        "name=\"status\" value=\"failed\" checked",
        "name=\"priority\" value=\"high\" checked",
        "type=\"hidden\" name=\"code\" value=\"refused\"",
        "name=\"model\" value=\"m\"",
        "name=\"caller\" value=\"c\"",
        "type=\"hidden\" name=\"metadata\" value=\"team=ops\"",
        "type=\"datetime-local\" step=\"1\" value=\"2026-01-01T10:00:00\"",
        "type=\"datetime-local\" step=\"1\" value=\"2099-01-01T10:00:30\"",
        &format!("type=\"hidden\" name=\"ids\" value=\"{}\"", ids[0]),
        "Status: <strong>Failed</strong>",
        "Error code: <strong>Claude refused to answer</strong>",
    ] {
        assert!(page.text.contains(part), "{part} is missing: {}", page.text);
    }
    assert!(!page.text.contains("role=\"alert\""), "the API takes each of them: {}", page.text);

    let bulk = [("mark", &*mark), ("filter", "text=plan"), ("ids", &ids[0]), ("ids", &ids[2]), ("action", "cancel")];
    let dry_run = browser.post("/admin/actions", &bulk).await.text;
    assert!(
        dry_run.contains("Cancel 2 jobs?") && dry_run.contains(&format!("ids={}&amp;ids={}", ids[0], ids[2])),
        "{dry_run}"
    );
    let confirmed = [
        ("mark", &*mark),
        ("filter", &format!("ids={}&ids={}", ids[0], ids[2])),
        ("action", "cancel"),
        ("confirmed", "true"),
    ];
    assert!(browser.post("/admin/actions", &confirmed).await.text.contains("2 jobs changed."));
    let left = browser.get("/admin?text=plan").await.text;
    for label in ["Cancel 1 job", "Retry 2 jobs", "Delete 2 jobs"] {
        assert!(left.contains(&format!(">{label}</button>")), "{label}: {left}");
    }

    let path = format!("/jobs/{}", ids[0]);
    assert!(browser.get(&path).await.text.contains(&format!("action=\"{path}/delete\"")));
    let pending = format!("/jobs/{}", ids[1]);
    assert!(!browser.get(&pending).await.text.contains("/delete\""), "a job that has not ended can't be deleted");
    assert_eq!(browser.post(&format!("{path}/delete"), &[]).await.status, StatusCode::FORBIDDEN);
    let early = browser.post(&format!("{pending}/delete"), &[("mark", &mark)]).await;
    assert_eq!(early.location, pending);
    let deleted = browser.post(&format!("{path}/delete"), &[("mark", &mark)]).await;
    assert!(deleted.status == StatusCode::OK && deleted.text.contains("The job is deleted"), "{}", deleted.text);
    assert_eq!(browser.get(&path).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn browsers_get_a_page_for_what_is_not_found_and_programs_a_problem() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let mut browser = Browser::of(&service);
    for path in ["/nowhere", "/admin/nowhere", "/api/v2/jobs", "/assets/x/y"] {
        let page = browser.get(path).await;
        assert_eq!(page.status, StatusCode::NOT_FOUND);
        assert!(page.text.contains("<h1>Page not found</h1>"), "{path}: {}", page.text);
        service.get(path).await.assert_problem(404, "not_found");
    }
    let posted = service.post("/nowhere", &json!({})).await;
    posted.assert_problem(404, "not_found");
    browser.get("/?lang=zh").await;
    assert!(browser.get("/nowhere").await.text.contains("<h1>未找到页面</h1>"));
}

#[tokio::test]
async fn the_page_of_the_api_is_named_as_english_to_chinese_readers_and_marked_so() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let text = in_chinese(&service, "/docs").await;
    assert!(text.contains("<h1>API 文档（英文）</h1>") && text.contains("<p class=\"lead\" lang=\"en\">"), "{text}");
}

/// A page in Chinese, however large it is.
async fn in_chinese(service: &Service, path: &str) -> String {
    let request = service.request(Method::GET, path).header("accept-language", "zh-CN");
    request.send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn a_service_that_is_open_beyond_this_machine_says_so_at_start_and_on_its_admin_page() {
    let claude = simulator().await;
    for (set, is_exposed) in [
        (&[("HOST", "0.0.0.0")][..], true),
        (&[("HOST", "127.0.0.1")], false),
        (&[("HOST", "0.0.0.0"), ("REQUIRE_API_KEY", "true")], false),
    ] {
        let mut setup = Setup::new(&claude.base_url());
        set.iter().for_each(|(name, value)| setup.set(name, value));
        let service = setup.start();
        let mut browser = Browser::of(&service);
        browser.sign_in().await;
        let page = browser.get("/admin").await;
        assert_eq!(page.status, StatusCode::OK);
        assert_eq!(page.text.contains("REQUIRE_API_KEY=true"), is_exposed, "{set:?}: {}", page.text);
        let log = service.kill();
        assert_eq!(log.matches("OPEN TO EVERYONE").count(), usize::from(is_exposed), "{set:?}: {log}");
    }
}

#[tokio::test]
async fn who_signed_in_stays_so_across_a_restart_and_sees_what_was_before_it() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let mut browser = Browser::of(&service);
    let mark = browser.sign_in().await;
    let sent = browser.post("/", &[("query", "Before the restart?")]).await;
    service.ended(sent.location.strip_prefix("/jobs/").unwrap()).await;
    let answer = service.post("/api/v1/analyze?wait=25", &json!({"query": "Waited for?"})).await;
    assert_eq!(answer.status, 200);
    assert!(service.terminate().0.success());

    let service = setup.start();
    browser.base = service.base().to_owned();
    for resolution in ["minute", "quarter_hour", "hour", "day"] {
        let history = service.admin_get(&format!("/api/v1/admin/history?resolution={resolution}")).await.body;
        let total = &history["total"];
        assert_eq!((&total["accepted"], &total["succeeded"], &total["in_time"]), (&json!(2), &json!(2), &json!(1)));
        assert!(total["p50_seconds"].as_f64() <= total["p95_seconds"].as_f64(), "{total}");
        assert!(total["p50_seconds"].is_f64() && total["output_tokens"].as_u64().unwrap() > 0, "{total}");
    }
    let wrong = service.admin_get("/api/v1/admin/history?resolution=year&from=then&to=now").await;
    let wrong = wrong.assert_problem(400, "invalid_parameter").body["detail"].to_string();
    assert!(
        ["quarter_hour", "RFC 3339", "allowed parameters: resolution and from"].iter().all(|part| wrong.contains(part)),
        "{wrong}"
    );
    for range in ["hour", "day", "week", "quarter"] {
        let page = browser.get(&format!("/admin?status=succeeded&range={range}")).await;
        assert_eq!(page.status, StatusCode::OK);
        assert!(page.text.contains("<path class=\"c2\" d=\"M"), "a bar for them in\n{}", page.text);
        assert!(page.text.contains(&format!("range={range}\" aria-current")), "{}", page.text);
    }
    let kept = browser.cookies.clone();
    assert_eq!(browser.post("/admin/logout", &[("mark", &mark)]).await.location, "/");
    assert!(service.terminate().0.success());
    let service = setup.start();
    browser.base = service.base().to_owned();
    browser.cookies = kept;
    assert_eq!(browser.get("/admin").await.status, StatusCode::SEE_OTHER, "who signed out stays so too");
}

#[tokio::test]
async fn who_has_a_key_asks_on_the_pages_and_reads_its_own_memos_only() {
    const ALICE: &str = "a-key-of-alice-1234";
    const REPORTS: &str = "a-key-of-her-reports";
    const BOB: &str = "a-key-of-bob-567890";
    let claude = simulator().await;
    let keys = format!("alice:{ALICE},alice/reports:read:{REPORTS},bob:{BOB}");
    let service = Setup::new(&claude.base_url()).with("API_KEYS", &keys).start();
    let mut alice = Browser::of(&service);
    assert!(alice.get("/").await.text.contains("name=\"key\""), "the form asks for the key");
    for (key, told) in [("", "This service needs an API key"), ("wrong", "not valid")] {
        let refused = alice.post("/", &[("query", "Open a plant in Lyon?"), ("key", key)]).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert!(refused.text.contains(told) && refused.text.contains("Open a plant in Lyon?"), "{}", refused.text);
    }
    let sent = alice.post("/", &[("query", "Open a plant in Lyon?"), ("key", ALICE)]).await;
    assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.text);
    let id = sent.location.strip_prefix("/jobs/").unwrap();
    send(service.request(Method::GET, &format!("/api/v1/jobs/{id}?wait=25")).bearer_auth(REPORTS)).await;
    assert!(alice.get(&sent.location).await.text.contains("Bottom line"), "she is signed in");
    let form = alice.get("/").await;
    assert!(!form.text.contains("name=\"key\"") && form.text.contains("Only you and the operators of this service"));
    assert!(!form.text.contains("/admin/audit"), "she does not run the queue");
    let queue = alice.get("/admin").await;
    assert_eq!((queue.status, &*queue.location), (StatusCode::SEE_OTHER, "/admin/login?next=%2Fadmin"));

    let mut stranger = Browser::of(&service);
    let closed = stranger.get(&sent.location).await;
    assert_eq!(closed.location, format!("/admin/login?next=%2Fjobs%2F{id}"));
    for (key, status) in [(BOB, StatusCode::NOT_FOUND), (REPORTS, StatusCode::OK)] {
        let mut reader = Browser::of(&service);
        let signed_in = reader.post("/admin/login", &[("token", key), ("next", &sent.location)]).await;
        assert_eq!((signed_in.status, &signed_in.location), (StatusCode::SEE_OTHER, &sent.location));
        assert_eq!(reader.get(&sent.location).await.status, status);
        let home = reader.post("/admin/login", &[("token", key), ("next", "/admin/keys")]).await;
        assert_eq!(home.location, "/", "where it may be");
    }
    let mut operator = Browser::of(&service);
    operator.sign_in().await;
    let queue = operator.get("/admin").await.text;
    assert!(!queue.contains("no-callers") && queue.contains("<td class=\"caller\">alice</td>"), "{queue}");
    let job = operator.get(&sent.location).await.text;
    assert!(job.contains("Caller alice"), "{job}");
}

#[tokio::test]
async fn wrong_tries_to_sign_in_are_limited_and_never_shut_out_the_right_token() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let mut browser = Browser::of(&service);
    for _ in 0..30 {
        assert_eq!(browser.post("/admin/login", &[("token", "wrong")]).await.status, StatusCode::UNAUTHORIZED);
    }
    let late = browser.post("/admin/login", &[("token", "wrong")]).await;
    assert_eq!(late.status, StatusCode::TOO_MANY_REQUESTS);
    let right = browser.post("/admin/login", &[("token", ADMIN_TOKEN)]).await;
    assert_eq!(right.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_failing_webhook_is_on_a_page_of_its_own_and_on_its_jobs_with_a_button_that_sends_it_again() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).with("WEBHOOK_ALLOW_PRIVATE", "127.0.0.0/8").start();
    let mut browser = Browser::of(&service);
    let mark = browser.sign_in().await;
    let empty = browser.get("/admin/webhooks").await.text;
    assert!(empty.contains("No webhook is failing.") && empty.contains("aria-current=\"page\">Webhooks"), "{empty}");
    // Nobody listens there.
    let question = json!({ "query": format!("Who listens? {EVIL}"), "callback_url": "http://127.0.0.1:1/hook" });
    let id = service.post("/api/v1/analyze", &question).await.id();
    let tries = async |count: usize| loop {
        let job = service.get(&format!("/api/v1/jobs/{id}")).await.body;
        if job["delivery"]["tries"].as_array().is_some_and(|tries| tries.len() >= count) {
            break job;
        }
        tokio::task::yield_now().await;
    };
    let job = tries(1).await;
    let why = job["delivery"]["tries"][0]["error"].as_str().unwrap().to_owned();
    let button = format!("action=\"/jobs/{id}/resend-webhook\"");
    for path in ["/admin/webhooks".to_owned(), format!("/jobs/{id}")] {
        let page = browser.get(&path).await.text;
        assert!(page.contains(&button) && page.contains("Send again") && page.contains("will be sent"), "{page}");
        assert!(page.contains(why.split(':').next().unwrap()) && !page.contains(EVIL), "{page}");
    }
    let path = format!("/jobs/{id}/resend-webhook");
    assert_eq!(browser.post(&path, &[("mark", "forged")]).await.status, StatusCode::FORBIDDEN);
    let sent = browser.post(&path, &[("mark", &mark)]).await;
    assert_eq!((sent.status, sent.location), (StatusCode::SEE_OTHER, format!("/jobs/{id}")));
    tries(2).await;
    browser.get("/admin/webhooks?lang=zh").await;
    let chinese = browser.get("/admin/webhooks").await.text;
    assert!(chinese.contains("未送达的 Webhook") && chinese.contains("重新发送"), "{chinese}");
    let mut stranger = Browser::of(&service);
    assert_eq!(stranger.get("/admin/webhooks").await.location, "/admin/login?next=%2Fadmin%2Fwebhooks");
}
