// Asks for the API key where the service wants one. It stays in this tab.
import { h } from "./dom.js";
import { get, key, setKey } from "./api.js";

let open = null;

export function askForKey(onDone) {
  if (open) return;
  const wasWrong = key() !== "";
  const input = h("input", { type: "password", id: "key", name: "key", autocomplete: "current-password", required: true,
    "aria-describedby": "keyhint", placeholder: "API key" });
  const fault = h("p", { class: "fault", role: "alert", id: "keyfault" }, wasWrong ? "This key is not known here." : "");
  const form = h("form", { method: "dialog" },
    h("h2", {}, "This service wants an API key"),
    h("label", { for: "key" }, "Key"), input,
    h("p", { class: "hint", id: "keyhint" }, "It is kept in this tab until you close it, and sent in a header only."),
    fault,
    h("button", { class: "primary" }, "Go on"));
  open = h("dialog", { class: "login", "aria-label": "API key" }, form);
  open.addEventListener("cancel", (event) => event.preventDefault());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    setKey(input.value.trim());
    try {
      await get("/v1/overview");
    } catch (error) {
      setKey("");
      fault.textContent = error.status === 401 ? "This key is not known here." : error.message;
      input.select();
      return;
    }
    open.close();
    open.remove();
    open = null;
    onDone();
  });
  document.body.append(open);
  open.showModal();
  input.focus();
}
