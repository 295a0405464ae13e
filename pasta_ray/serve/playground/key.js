/** The API key, for services that ask for one. It is kept for this tab alone, and never in a link. */

const STORED = "pasta-ray-api-key";

export class Key {
  #form;
  #input;
  #value = "";

  /** `changed` is called when there is a new key. */
  constructor(form, changed) {
    this.#form = form;
    this.#input = form.querySelector("input");
    this.#input.pattern = "[!-~]+"; // what a header can carry
    try {
      this.#value = sessionStorage.getItem(STORED) ?? "";
    } catch {
      // storage may be forbidden: then the key lasts as long as the page
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#value = this.#input.value;
      this.#input.value = "";
      this.#store();
      form.hidden = true;
      changed();
    });
  }

  get value() {
    return this.#value;
  }

  /** The service wants a key, or another one. */
  ask() {
    this.#value = "";
    this.#store();
    this.#form.hidden = false;
    this.#input.focus();
  }

  #store() {
    try {
      if (this.#value) sessionStorage.setItem(STORED, this.#value);
      else sessionStorage.removeItem(STORED);
    } catch {
      // see above
    }
  }
}
