"""The emulator of Service Bus, tried with clients that do not know it: azure-servicebus, and Qpid Proton."""
