// Passkeys: makes one on the account page, and signs in with one.
"use strict";

const passkeys = document.getElementById("passkeys");
// A passkey works only at the address that the market says. A browser without the functions for JSON is too old.
const canUsePasskeys =
  passkeys?.dataset.origin === location.origin && !!window.PublicKeyCredential?.parseCreationOptionsFromJSON;

// Sends JSON, and returns the answer. An error has the server's words.
const sendJson = async (path, body) => {
  const headers = { "content-type": "application/json", "x-csrf-token": passkeys.dataset.csrf ?? "" };
  const answer = await fetch(path, body && { method: "POST", headers, body: JSON.stringify(body) });
  if (answer.ok) return answer.status === 201 ? null : answer.json();
  const problem = await answer.json().catch(() => null);
  if (answer.status === 429) throw new Error("Too many requests. Wait a minute, and try again.");
  throw new Error(problem?.detail ?? "That did not work. Reload the page, and try again.");
};

const run = async (work) => {
  const error = passkeys.querySelector(".error");
  const button = passkeys.querySelector("button.passkey");
  error.hidden = true;
  button.disabled = true;
  try {
    await work();
  } catch (e) {
    // The person closed the browser's dialog, or has no passkey for this market.
    error.textContent = e.name === "NotAllowedError" ? "No passkey was used." : e.message;
    error.hidden = false;
  } finally {
    button.disabled = false;
  }
};

const addPasskey = async (form) => {
  const { password, label } = form.elements;
  const { options, ceremony } = await sendJson("/account/passkeys/begin", { password: password.value });
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
  const credential = await navigator.credentials.create({ publicKey });
  await sendJson("/account/passkeys", { ceremony, answer: credential.toJSON(), label: label.value });
  location.assign("/account?done=passkey");
};

const signIn = async () => {
  const { options, ceremony } = await sendJson("/sign-in/passkey");
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(options);
  const credential = await navigator.credentials.get({ publicKey });
  const body = { ceremony, answer: credential.toJSON(), next: passkeys.dataset.next };
  const { next } = await sendJson("/sign-in/passkey", body);
  location.assign(next);
};

if (canUsePasskeys) {
  passkeys.hidden = false;
  const form = passkeys.querySelector("form.add-passkey");
  form?.addEventListener("submit", (event) => {
    event.preventDefault();
    run(() => addPasskey(form));
  });
  passkeys.querySelector("button.sign-in")?.addEventListener("click", () => run(signIn));
}
