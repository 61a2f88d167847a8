// Requests to this server only; a dialog asks for the token where one is needed.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function refusal(response) {
  const told = await response.json().catch(() => ({}));
  const words = typeof told.detail === "string" ? told.detail : `the server answered ${response.status}`;
  return new Refused(response.status, words);
}

let login = null;

function askForToken() {
  login ??= new Promise((resolve) => {
    const dialog = document.createElement("dialog");
    dialog.className = "login";
    dialog.setAttribute("aria-labelledby", "login-title");
    const form = document.createElement("form");
    form.innerHTML = `<h2 id="login-title">Log in</h2>
      <p>The token stands in the node's configuration.</p>
      <input class="visually-hidden" autocomplete="username" value="cddnet" tabindex="-1" aria-hidden="true" readonly>
      <label>Token <input type="password" name="token" autocomplete="current-password" required></label>
      <p role="alert" class="error"></p>
      <button class="main">Log in</button>`;
    dialog.append(form);
    document.body.append(dialog);
    // Without a token there is nothing to go back to.
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const body = JSON.stringify({ token: form.elements.token.value });
      const response = await fetch("/api/login", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body,
      });
      if (!response.ok) {
        form.querySelector(".error").textContent = (await refusal(response)).message;
        form.elements.token.select();
        return;
      }
      dialog.close();
      dialog.remove();
      login = null;
      resolve();
    });
    dialog.showModal();
  });
  return login;
}

export async function ask(path, options = {}) {
  for (;;) {
    const response = await fetch(path, options);
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    await askForToken();
  }
}

// What the server offers, after logging in where that is asked.
export async function session() {
  const told = await askJson("/api/session");
  if (!told.logged_in) await askForToken();
  return told;
}

export async function askJson(path, options) {
  return (await ask(path, options)).json();
}

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
